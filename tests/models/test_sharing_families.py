"""Shared prefixes on small models of some families, with texts longer than their windows; each seed selects others.

All families are `python -m tests.models.sharing_matrix`.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.models.sharing_matrix import compare, configurations
from tests.tiny_llama import write_base

SEED = int(os.environ.get("HPCQ_FAMILIES_SEED", "1"))
_ALL = {name: (kind, settings) for name, kind, settings in configurations((32, 256))}
_ALWAYS = ("gpt-neo window 256", "mistral window 256", "gemma3 window 32")
CHOSEN = [*_ALWAYS, *random.Random(SEED).sample(sorted(set(_ALL) - {*_ALWAYS}), 3)]  # noqa: S311  reproducible


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a byte tokenizer."""
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("name", CHOSEN)
def test_log_likelihoods_are_lm_evals_or_prefixes_are_not_shared(name: str, tokenizer: Path) -> None:
    """With requests of 10 to 600 tokens, a model is within 1e-4 of lm-eval's own scoring, or refused with a reason."""
    outcome = compare(name, *_ALL[name], tokenizer)

    assert outcome.is_right, str(outcome)
    if name == "gpt-neo window 256":
        assert "attention functions" in (outcome.refusal or "")
    elif name in _ALWAYS:
        assert outcome.refusal is None
