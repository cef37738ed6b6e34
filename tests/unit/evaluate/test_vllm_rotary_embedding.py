"""Rotary embeddings for which vLLM has one set of frequencies: which texts get others than with transformers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hpcq.evaluate.backends.vllm.rotary_embedding import fixed_rope
from hpcq.verify.marks import MarkKind, VariantFacts, derive_marks

LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 128}


@pytest.mark.parametrize(
    ("config", "max_length", "expected"),
    [
        ({"rope_parameters": LONGROPE}, 512, "longrope frequencies of texts above 128 tokens (maximum length 512)"),
        ({"rope_parameters": LONGROPE}, 128, ""),
        (
            {"rope_parameters": {"rope_type": "longrope"}, "original_max_position_embeddings": 64},
            512,
            "longrope frequencies of texts above 64 tokens (maximum length 512)",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {}}},
            2048,
            "dynamic frequencies of texts above 1024 tokens (maximum length 2048)",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 128}}, 512, ""),
        ({"rope_parameters": None}, 512, ""),
    ],
)
def test_frequencies_that_depend_on_the_length_are_marked(
    config: dict[str, Any], max_length: int, expected: str
) -> None:
    """Observed: vLLM computes Phi-3.5's short texts with the frequencies of long ones, without a mark."""
    found = fixed_rope(SimpleNamespace(max_position_embeddings=1024, **config), max_length)
    assert found == expected
    assert fixed_rope(SimpleNamespace(), max_length) == "", "a model without positions"
    marks = derive_marks(VariantFacts(segments=[{"fixed_rope": found}]))
    assert [mark.kind for mark in marks] == ([MarkKind.FIXED_ROPE] if expected else [])
