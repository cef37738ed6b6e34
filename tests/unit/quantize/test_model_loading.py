"""Loading of a base checkpoint: a model that is not exactly that of its files is refused with names."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.hf_config import read_checkpoint_shape
from hpcq.core.errors import UserInputError
from hpcq.quantize.model_loading import LoadedModel, load_base, separator_token
from tests.checkpoint_weights import edit_json, rewrite_weights

torch = pytest.importorskip("torch")

EditTensors = Callable[[dict[str, Any]], None]


@pytest.fixture
def copy(base_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the small Llama, to damage."""
    return Path(shutil.copytree(base_checkpoint, tmp_path / "copy"))


def load(folder: Path, *, trust_remote_code: bool = False) -> LoadedModel:
    """Load a checkpoint in float32."""
    return load_base(folder, compute_dtype="float32", trust_remote_code=trust_remote_code)


def edit_tensors(folder: Path, edit: EditTensors) -> None:
    """Change the tensors of a checkpoint."""
    from safetensors.torch import load_file, save_file

    tensors = dict(load_file(folder / "model.safetensors"))
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_tied_head_is_not_missing(base_checkpoint: Path) -> None:
    """The small Llama's head shares its weights with the embeddings, and its file has no lm_head."""
    loaded = load(base_checkpoint)
    assert loaded.saved_dtype == "bfloat16"
    assert not loaded.model.training
    assert loaded.model.lm_head.weight.dtype == torch.float32


def test_missing_weights_are_refused(copy: Path) -> None:
    """transformers would initialize them at random. Observed: without one projection, random weights were quantized."""
    edit_tensors(copy, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    match = r"copy: the weight model.layers.1.mlp.up_proj.weight of the model is missing in its files: copy or download"
    with pytest.raises(UserInputError, match=match):
        load(copy)


@pytest.mark.parametrize(
    ("name", "clause"),
    [
        ("model.norm.weight", "all of its logits are equal"),
        ("model.embed_tokens.weight", "its logits are the same after every token"),
    ],
)
def test_a_model_that_does_not_read_its_text_is_refused(copy: Path, name: str, clause: str) -> None:
    """Observed: with a last norm of zeros, scores that depend on the lengths of the choices, without a mark."""

    def damage(tensors: dict[str, Any]) -> None:
        head = tensors["model.embed_tokens.weight"].clone()
        tensors[name].copy_(head[:1].expand_as(head) if "embed" in name else torch.zeros(()))
        tensors["lm_head.weight"] = head

    edit_tensors(copy, damage)
    edit_json(copy / "config.json", tie_word_embeddings=False)
    with pytest.raises(UserInputError, match=clause):
        load(copy)


def test_unexpected_weights_are_refused(copy: Path) -> None:
    """transformers would ignore them: the configuration is that of a smaller model."""
    edit_json(copy / "config.json", num_hidden_layers=1, layer_types=None)
    with pytest.raises(
        UserInputError, match=r"9 weights in its files do not belong to the model, such as model.layers.1"
    ):
        load(copy)


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    """The message names the weights."""
    edit_json(copy / "config.json", intermediate_size=512)
    with pytest.raises(UserInputError, match=r"6 weights have other shapes .* model.layers.0.mlp.down_proj"):
        load(copy)


def test_buffers_of_old_versions_are_ignored(copy: Path) -> None:
    """Early Llama checkpoints have the frequencies of their rotary embeddings."""
    edit_tensors(copy, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}))
    assert load(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, copy: Path) -> None:
    """A damaged weight is named before anything is calibrated. Observed: NaN weights were quantized."""

    def damage(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = value

    edit_tensors(copy, damage)
    with pytest.raises(
        UserInputError, match=r"the weight model.layers.0.mlp.up_proj.weight has values that are not finite"
    ):
        load(copy)


def test_an_unknown_family_is_refused(copy: Path) -> None:
    """transformers' reason is in the message, in one line."""
    edit_json(copy / "config.json", model_type="no-such-family")
    with pytest.raises(
        UserInputError, match=r"copy: transformers cannot make a model of its config.json: .*no-such-family"
    ) as error:
        load(copy)
    assert "\n" not in str(error.value)


def test_a_missing_tokenizer_is_refused_with_the_fix(copy: Path) -> None:
    """Without tokenizer.json transformers needs packages and files that may be missing."""
    (copy / "tokenizer.json").unlink()
    with pytest.raises(UserInputError, match=r"cannot load its tokenizer: .*: copy the model.s tokenizer files"):
        load(copy)


def test_a_tokenizer_of_another_model_is_refused(copy: Path) -> None:
    """Otherwise token ids beyond the embeddings are an index error in the middle of the calibration."""
    edit_json(copy / "config.json", vocab_size=100)
    edit_tensors(copy, lambda tensors: tensors.update({"model.embed_tokens.weight": torch.zeros(100, 128)}))
    with pytest.raises(
        UserInputError, match=r"its tokenizer does not fit the model: .* up to 257, but the model has 100 tokens"
    ):
        load(copy)


def test_the_separator_is_the_tokenizers_or_the_models(copy: Path) -> None:
    """If the tokenizer has no end-of-text token, that of the configuration separates passages."""
    assert separator_token(load(copy)) == 1
    edit_json(copy / "tokenizer_config.json", eos_token=None)
    edit_json(copy / "config.json", eos_token_id=[7, 8])
    assert separator_token(load(copy)) == 7
    edit_json(copy / "config.json", eos_token_id=None)
    assert separator_token(load(copy)) in (None, 2)


@pytest.mark.parametrize("as_pickle", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_without_a_stated_dtype_the_tensors_decide(copy: Path, dtype: str, *, as_pickle: bool) -> None:
    """Without a dtype in config.json, the plan, the loaded model and the saved checkpoint have that of the tensors.

    Observed: without a stated dtype, weights were saved in float32, with other scales.
    """
    rewrite_weights(copy, dtype, as_pickle=as_pickle)

    loaded = load_base(copy, compute_dtype=None, trust_remote_code=False)
    assert loaded.saved_dtype == dtype
    assert {str(tensor.dtype) for tensor in loaded.model.parameters()} == {f"torch.{dtype}"}
    shape = read_checkpoint_shape(copy)
    assert shape.value_bytes == getattr(torch, dtype).itemsize
    assert as_pickle or shape.stored_dtype == dtype


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["float16", "torch.float16"])
def test_a_stated_dtype_decides(copy: Path, key: str, value: str) -> None:
    """Under both names of the key, and with torch's prefix, plan and model have the stated dtype."""
    edit_json(copy / "config.json", dtype=None, torch_dtype=None)
    edit_json(copy / "config.json", **{key: value})
    if value.startswith("torch."):
        assert read_checkpoint_shape(copy).stored_dtype == "float16"
        return
    loaded = load_base(copy, compute_dtype=None, trust_remote_code=False)
    assert (loaded.saved_dtype, read_checkpoint_shape(copy).stored_dtype) == ("float16", "float16")


def test_some_tensors_may_have_another_dtype(copy: Path) -> None:
    """A model with norms in float32 and all other weights in bfloat16 is a model in bfloat16."""

    def widen(tensors: dict[str, Any]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].float()

    rewrite_weights(copy, "bfloat16")
    edit_tensors(copy, widen)
    assert load_base(copy, compute_dtype=None, trust_remote_code=False).saved_dtype == "bfloat16"
    assert read_checkpoint_shape(copy).stored_dtype == "bfloat16"
