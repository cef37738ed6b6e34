"""All kinds of mutations by name."""

from __future__ import annotations

from tests.mutations.kinds import configuration, generation, texts, tokenizer, weights
from tests.mutations.kinds.registry import KINDS

__all__ = ["KINDS", "configuration", "generation", "texts", "tokenizer", "weights"]
