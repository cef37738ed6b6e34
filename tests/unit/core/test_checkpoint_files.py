"""Files of a base checkpoint that are copied to its quantized checkpoints."""

from __future__ import annotations

from hpcq.core.checkpoint_files import relevant_files, travelling_files

TRAVELLING = [
    "added_tokens.json",
    "additional_chat_templates/tool_use.jinja",
    "chat_template.jinja",
    "configuration_own.py",
    "generation_config.json",
    "merges.txt",
    "modeling_own.py",
    "qwen.tiktoken",
    "spiece.model",
    "tokenization_own.py",
    "tokenizer.model",
    "vocab.bpe",
]
REPLACED = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
UNREAD = ["README.md", "figures/x.json", "inference/generate.py", "original/tokenizer.model"]


def test_code_and_tokenizers_of_every_kind_travel() -> None:
    """Code, tokenizers and templates are copied and are part of the digest; weights and configuration are written anew.

    Observed: quantized checkpoints lacked the `*.py` files of `trust_remote_code` models, and the tokenizers of
    tiktoken and SentencePiece (`spiece.model`).
    """
    names = [*UNREAD, *REPLACED, *TRAVELLING]
    assert travelling_files(names) == TRAVELLING
    assert relevant_files(names) == sorted([*REPLACED, *TRAVELLING])
