"""Conversion of a small GGUF file of Gemma 3: names, norms, configuration, and the order of the tokenizer's merges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")

from hpcq.core.errors import WorkerError  # noqa: E402 (after the optional modules)
from hpcq.stage.gguf_checkpoint import write_checkpoint  # noqa: E402

HIDDEN, LAYERS = 8, 6
TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "\n", "\n\n", "  ", "\u2581", "a", "b", "ab", "\u2581a", "<0x21>"]
TYPES = [3, 3, 3, 3, 4, 4, 4, 1, 1, 1, 1, 1, 6]
SCORES = [-1000.0] * 7 + [-5.0, -6.0, -7.0, -2.0, -1.0, -1000.0]


def write_gguf(path: Path, *, pre_tokenizer: str = "default") -> dict[str, Any]:
    """Write a file with random weights; return its tensors by llama.cpp's names."""
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(8)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(TOKENS)
    writer.add_token_scores(SCORES)
    writer.add_token_types(TYPES)
    for name, number in (("bos", 2), ("eos", 1), ("unk", 3), ("pad", 0)):
        getattr(writer, f"add_{name}_token_id")(number)
    random = np.random.default_rng(1)
    shapes = {"token_embd.weight": (len(TOKENS), HIDDEN), "output_norm.weight": (HIDDEN,)}
    shapes |= {f"blk.{layer}.attn_q.weight": (8, HIDDEN) for layer in range(LAYERS)}
    shapes |= {f"blk.{layer}.attn_q_norm.weight": (4,) for layer in range(LAYERS)}
    tensors = {name: random.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture
def converted(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint's folder and the tensors of its source."""
    tensors = write_gguf(tmp_path / "model.gguf")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_checkpoint(tmp_path / "model.gguf", folder)
    return folder, tensors


def test_norms_are_stored_without_their_one(converted: tuple[Path, dict[str, Any]]) -> None:
    """GGUF has the weights of norms plus one; matrices are unchanged, and q is not reordered as Llama's is."""
    from safetensors.torch import load_file

    folder, tensors = converted
    found = load_file(folder / "model.safetensors")
    assert len(found) == len(tensors)
    pairs = {
        "model.layers.5.self_attn.q_norm.weight": tensors["blk.5.attn_q_norm.weight"] - 1,
        "model.norm.weight": tensors["output_norm.weight"] - 1,
        "model.layers.0.self_attn.q_proj.weight": tensors["blk.0.attn_q.weight"],
        "model.embed_tokens.weight": tensors["token_embd.weight"],
    }
    for name, expected in pairs.items():
        assert torch.equal(found[name], torch.from_numpy(expected).to(torch.bfloat16)), name


def test_every_sixth_layer_has_full_attention(converted: tuple[Path, dict[str, Any]]) -> None:
    """The window pattern and the local rotary base, which GGUF does not store, are Gemma 3's; the head is tied."""
    config = json.loads((converted[0] / "config.json").read_text(encoding="utf-8"))
    assert config["layer_types"] == ["sliding_attention"] * 5 + ["full_attention"]
    assert (config["rope_local_base_freq"], config["rope_theta"], config["rms_norm_eps"]) == (10000.0, 1e6, 1e-06)
    assert (config["tie_word_embeddings"], config["vocab_size"]) == (True, len(TOKENS))


def test_merges_are_in_the_order_of_sentencepiece(converted: tuple[Path, dict[str, Any]]) -> None:
    """User-defined tokens merge first, then tokens by score; spaces of the vocabulary become its own sign."""
    content = json.loads((converted[0] / "tokenizer.json").read_text(encoding="utf-8"))
    assert content["model"]["merges"] == [["\n", "\n"], ["\u2581", "\u2581"], ["\u2581", "a"], ["a", "b"]]
    assert content["model"]["vocab"]["\u2581\u2581"] == 6


def test_a_text_begins_with_bos_and_survives(converted: tuple[Path, dict[str, Any]]) -> None:
    """Runs of line ends and spaces are one token each, and a character without a token becomes its bytes."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(converted[0] / "tokenizer.json"))
    assert tokenizer.encode("ab\n\n  a!").tokens == ["<bos>", "ab", "\n\n", "\u2581\u2581", "a", "<0x21>"]
    assert tokenizer.decode(tokenizer.encode("ab\n\n  a!").ids) == "ab\n\n  a!"


def test_another_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    """The message has the file, what it contains, and what can be converted."""
    write_gguf(tmp_path / "model.gguf", pre_tokenizer="llama-bpe")
    with pytest.raises(WorkerError, match=r"model\.gguf: architecture 'gemma3' with pre-tokenizer 'llama-bpe' cannot"):
        write_checkpoint(tmp_path / "model.gguf", tmp_path)
