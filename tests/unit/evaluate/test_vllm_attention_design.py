"""Attention that vLLM computes in another way than transformers: the variant is marked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hpcq.evaluate.backends.vllm.attention_design import attention_difference
from hpcq.verify.marks import MarkKind, VariantFacts, derive_marks


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"model_type": "cohere2", "sliding_window": 4096},
            "windows of 4097 tokens in vLLM, of 4096 in transformers (texts above 4096 tokens)",
        ),
        ({"model_type": "cohere2", "sliding_window": 8192}, ""),
        ({"model_type": "mistral", "sliding_window": 4096}, ""),
        ({"model_type": "falcon", "alibi": True}, "ALiBi biases in float32 in vLLM, in bfloat16 in transformers"),
        ({"model_type": "falcon", "alibi": False}, ""),
    ],
)
def test_attention_that_differs_by_design_is_marked(config: dict[str, Any], expected: str) -> None:
    """Observed: beyond its window, Cohere2 differs by 0.3 nats between the backends, without a mark."""
    found = attention_difference(SimpleNamespace(**config), 8192)
    assert found == expected
    marks = derive_marks(VariantFacts(segments=[{"attention_difference": found}]))
    assert [mark.kind for mark in marks] == ([MarkKind.ATTENTION_DIFFERENCE] if expected else [])
