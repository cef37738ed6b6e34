"""Tables of families: what is not recorded is never shown as a result."""

from __future__ import annotations

from typing import Any

from docs.families import backends_table
from docs.family_scores import table_lines
from tests.models.family_scores import UNQUANTIZED, Outcome
from tests.quantize_matrix import SCHEMES


def _row(model: str, backend: str = "accelerate", **fields: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"prompt_tokens": 1000, "planned_bytes": 8, "stored_bytes": 8, "sharing": "exact"}
    outcome = Outcome(**{"is_equal": True, **defaults, **fields}, model=model, backend=backend)
    return dict(vars(outcome))


def test_models_without_an_outcome_are_not_measured() -> None:
    """A missing outcome is "not measured" in each column, also in that of shared prefixes; a refusal has its reason."""
    lines = table_lines([_row("a"), _row("b", "vllm", refused="no such layer", is_equal=False)], ["a", "b", "c"])
    assert "| a | 0e+00 | not measured | yes |" in lines
    assert "| b | not measured | – (no such layer) | not measured |" in lines
    assert lines[-1] == "Not measured with any backend: c."
    assert any(line.startswith("- `accelerate`: 1 of 3 models are measured") for line in lines)
    assert "- `vllm`: none of 3 models is measured." in lines


def test_differences_and_failures_are_named() -> None:
    """A model that differs, has other bytes or failed is named; the sentences above the table except it."""
    rows = [
        _row("a", is_equal=False, difference=0.5, sharing="a reason"),
        _row("b", stored_bytes=9, sharing="within rounding"),
        _row("c", failed="out of memory"),
        _row("d", is_equal=False, difference=1e-5),
    ]
    lines = table_lines(rows, ["a", "b", "c", "d"])
    assert "| a | differs by 5e-01 | not measured | no: a reason |" in lines
    assert "| b | 0e+00 | not measured | yes |" in lines
    assert "| c | failed (out of memory) | not measured | not measured |" in lines
    assert "| d | texts differ | not measured | yes |" in lines
    text = "\n".join(lines)
    assert "agree with lm-eval's in all of them, except a, d." in text
    assert "equal the stored bytes in all of them, except b." in text


def test_without_evaluations_of_checkpoints_there_is_only_a_count() -> None:
    """The table of backends has no rows without an outcome."""
    scheme = SCHEMES[0]
    (line,) = backends_table({"llama": {scheme: {}}, "qwen2": {scheme: {}}}, {})
    assert line.startswith("0 of 4 evaluations")


def test_only_recorded_families_and_columns_are_in_the_table_of_backends() -> None:
    """One outcome gives one row and one column; outcomes of unquantized models are in docs/scores.md."""
    checkpoints = {family: {scheme: {} for scheme in SCHEMES[:2]} for family in ("llama", "qwen2")}
    scores = {
        ("llama", SCHEMES[0], "accelerate"): _row("llama", difference=1e-5),
        ("qwen2", UNQUANTIZED, "accelerate"): _row("qwen2"),
    }
    lines = list(backends_table(checkpoints, scores))
    assert [line for line in lines if line.startswith("|")] == [
        f"| family | `{SCHEMES[0]}`, accelerate |",
        "|---|---|",
        "| llama | 1e-05 |",
    ]
