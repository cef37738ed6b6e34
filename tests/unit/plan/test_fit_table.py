"""The fit table of docs/fit.md agrees with the planner, and with what is known of large models."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.plan.placement.fit_table import cell, fit_table

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "fit.md"


def test_the_documented_table_is_current() -> None:
    """docs/fit.md ends with the table; `make docs` updates it."""
    assert DOCUMENT.read_text(encoding="utf-8").endswith("\n\n" + fit_table())


@pytest.mark.parametrize(
    ("model", "scheme", "gpu", "expected"),
    [
        ("meta-llama/Llama-3.1-405B", "bf16", "H100-80", "8×2"),
        ("meta-llama/Llama-3.1-405B", "fp8", "H100-80", "8"),
        ("meta-llama/Llama-3.1-405B", "gptq-w4a16", "A100-80", "4"),
        ("meta-llama/Llama-3.1-405B", "gptq-w4a16", "A6000-48", "8"),
        ("meta-llama/Llama-3.1-70B", "bf16", "A6000-48", "4"),
        ("meta-llama/Llama-3.1-70B", "bf16", "A100-80", "4"),
        ("meta-llama/Llama-3.1-70B", "fp8", "A6000-48", "4*"),
        ("meta-llama/Llama-3.1-8B", "bf16", "V100-32", "–"),
    ],
)
def test_the_table_agrees_with_what_is_known(model: str, scheme: str, gpu: str, expected: str) -> None:
    """405B: 16 H100 in BF16, 8 in FP8, 4 A100 in W4A16; 70B in BF16: 4 cards of 48 GB; nothing fits Volta."""
    assert cell(model, scheme, gpu) == expected
