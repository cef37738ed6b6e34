"""A small random Llama with a byte tokenizer, and a calibration text, for tests of quantization."""

from __future__ import annotations

import json
from pathlib import Path

from hpcq.core.files import digest_of_file
from hpcq.core.work_records import Calibration


def write_base(
    folder: Path, *, layers: int = 2, hidden_size: int = 128, seed: int = 0, max_shard_size: str = "5GB"
) -> Path:
    """Write a Llama with `layers` layers in bfloat16 and reproducible random weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size=max_shard_size)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<start>", "<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"bos_token": "<start>", "eos_token": "<end>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def write_calibration(path: Path) -> Calibration:
    """Write a text of 100 short passages, calibrated with 8 sequences of 64 tokens."""
    lines = (
        json.dumps({"text": f"Passage {number} says that {number} times {number} is {number**2}."}) + "\n"
        for number in range(100)
    )
    path.write_text("".join(lines), encoding="utf-8")
    return Calibration(digest=digest_of_file(path), samples=8, sequence_length=64, dataset="passages", path=str(path))
