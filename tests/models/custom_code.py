"""A small checkpoint with code of its own: configuration, model and tokenizer, in modules that import each other."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

CONFIGURATION = """
from transformers import LlamaConfig


class LettersConfig(LlamaConfig):
    model_type = "letters"

    logit_factor: float = 2.0
"""
FACTORS = """
def scaled(logits, factor):
    return logits * factor
"""
MODEL = """
from transformers import LlamaForCausalLM

from .configuration_letters import LettersConfig
from .factors import scaled


class LettersForCausalLM(LlamaForCausalLM):
    config_class = LettersConfig

    def forward(self, *arguments, **settings):
        output = super().forward(*arguments, **settings)
        output.logits = scaled(output.logits, self.config.logit_factor)
        return output
"""
TOKENIZER = """
import os

from transformers import PreTrainedTokenizer


class LettersTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "letters.vocab"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file, **settings):
        with open(vocab_file, encoding="utf-8") as file:
            self._letters = [line.rstrip("\\n") for line in file]
        self._numbers = {letter: number for number, letter in enumerate(self._letters)}
        super().__init__(**settings)

    @property
    def vocab_size(self):
        return len(self._letters)

    def get_vocab(self):
        return dict(self._numbers) | self.added_tokens_encoder

    def _tokenize(self, text, **_settings):
        return list(text)

    def _convert_token_to_id(self, token):
        return self._numbers.get(token, self._numbers["?"])

    def _convert_id_to_token(self, number):
        return self._letters[number]

    def save_vocabulary(self, save_directory, filename_prefix=None):
        return ()
"""
LETTERS = [*"?abcdefghijklmnopqrstuvwxyz ,.ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:\\n", "<begin>", "<end>"]


def write_custom_checkpoint(folder: Path) -> Path:
    """Write the checkpoint, with random weights in bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(LETTERS),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        dtype="bfloat16",
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    modules = {
        "configuration_letters.py": CONFIGURATION,
        "factors.py": FACTORS,
        "modeling_letters.py": MODEL,
        "tokenization_letters.py": TOKENIZER,
        "letters.vocab": "\n".join(LETTERS) + "\n",
    }
    for name, text in modules.items():
        (folder / name).write_text(text.lstrip(), encoding="utf-8")
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    content |= {
        "model_type": "letters",
        "architectures": ["LettersForCausalLM"],
        "logit_factor": 2.0,
        "auto_map": {
            "AutoConfig": "configuration_letters.LettersConfig",
            "AutoModelForCausalLM": "modeling_letters.LettersForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = {
        "tokenizer_class": "LettersTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_letters.LettersTokenizer", None]},
        "bos_token": "<begin>",
        "eos_token": "<end>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder
