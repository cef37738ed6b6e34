"""Choice of the files of a model repository."""

from __future__ import annotations

import pytest

from hpcq.stage.model_files import choose_model_files

COMMON = ("README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize(
    ("paths", "weights", "index"),
    [
        (("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"), ("model.safetensors",), None),
        (("model.safetensors.index.json", "model-00001-of-00002.safetensors"), (), "model.safetensors.index.json"),
        (("pytorch_model.bin", "optimizer.bin", "tf_model.h5", "flax_model.msgpack"), ("pytorch_model.bin",), None),
        (("pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"), (), "pytorch_model.bin.index.json"),
        (("gptq_model-4bit-128g.safetensors",), ("gptq_model-4bit-128g.safetensors",), None),
        (("consolidated.safetensors", "params.json", "model.safetensors"), ("model.safetensors",), None),
        (("consolidated.safetensors", "original/model.safetensors", "model.gguf", "onnx/model.onnx"), (), None),
        (("adapter_model.safetensors", "adapter_config.json"), (), None),
    ],
)
def test_one_copy_of_the_weights_is_chosen(paths: tuple[str, ...], weights: tuple[str, ...], index: str | None) -> None:
    """The weights are those that transformers loads; other formats and variants are left out."""
    chosen = choose_model_files([*COMMON, *paths])
    assert (chosen.weights, chosen.index) == (weights, index)
    assert chosen.has_weights == bool(weights or index)
    assert set(chosen.others) == {*COMMON, *filter(None, [index])}


def test_tokenizers_code_and_templates_are_chosen() -> None:
    """What a tokenizer or a model with its own code reads is staged; figures and training states are not."""
    needed = (
        "additional_chat_templates/tool_use.jinja",
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "modeling_x.py",
        "qwen.tiktoken",
        "special_tokens_map.json",
        "tekken.json",
        "tokenizer.model",
        "tokenizer.model.v3",
        "vocab.json",
    )
    other = (
        ".gitattributes",
        "figures/a.png",
        "trainer_state.json",
        "optimizer.pt",
        "scheduler.pt",
        "inference/run.py",
    )
    assert choose_model_files([*needed, *other]).others == needed
