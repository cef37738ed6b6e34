"""Table of unquantized evaluations of all families, recorded by `python -m tests.models.family_scores`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.models.family_scores import TOLERANCE, UNQUANTIZED, models, tasks_of

RECORD = Path(__file__).with_name("family_scores.json")
BACKENDS = ("accelerate", "vllm")
NOT_MEASURED = "not measured"
_SHARED = ("exact", "within rounding", "within the rounding of quantized activations")
"""Values of `prefix_sharing` of a backend that shares prefixes; any other value is the reason why it does not."""

Row = Mapping[str, Any]


def scores_table() -> str:
    """Return the table as Markdown: largest difference of a log-likelihood from lm-eval's, by model and backend."""
    rows = [row for row in json.loads(RECORD.read_text(encoding="utf-8")) if row["scheme"] == UNQUANTIZED]
    return "\n".join(table_lines(rows, list(models()))) + "\n"


def table_lines(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Return the lines of the table and of the text above it.

    Args:
        rows: Outcomes of unquantized models (tests.models.family_scores.Outcome, as data).
        names: Names of all models, in order; those without an outcome are listed below the table.
    """
    found = {(row["model"], row["backend"]): row for row in rows}
    shown = [name for name in names if any((name, backend) in found for backend in BACKENDS)]
    lines = [
        "Largest difference of a log-likelihood from lm-eval's in float32, in nats. Two log-likelihoods agree if they",
        "differ by at most 1e-4 nats plus 1e-5 of the value; texts agree if they are equal. A pair without a number is",
        f'refused by the planner ("–", with the reason), "failed" (with the reason), or "{NOT_MEASURED}".',
        "",
        *(f"- {_summary(rows, backend, len(names))}" for backend in BACKENDS),
        f"- {_bytes_summary(rows)}",
        "",
        f"| model | {' | '.join(f'`{backend}`' for backend in BACKENDS)} | prefixes shared with `accelerate` |",
        "|---" * (len(BACKENDS) + 2) + "|",
    ]
    for name in shown:
        cells = [_cell(found.get((name, backend))) for backend in BACKENDS]
        lines.append(f"| {name} | {' | '.join(cells)} | {_sharing(found.get((name, BACKENDS[0])))} |")
    if missing := [name for name in names if name not in shown]:
        lines += ["", f"Not measured with any backend: {', '.join(missing)}."]
    return lines


def is_measured(row: Row) -> bool:
    """Return whether an outcome has responses that were compared."""
    return not row["refused"] and not row["failed"]


def outcome_text(row: Row, reason: str) -> str:
    """Return the cell of an outcome.

    Args:
        row: The outcome.
        reason: What to show in parentheses if it was refused or failed.
    """
    if row["refused"]:
        return f"– ({reason})"
    if row["failed"]:
        return f"failed ({reason})"
    if row["is_equal"]:
        return f"{row['difference']:.0e}"
    return "texts differ" if row["difference"] <= TOLERANCE else f"differs by {row['difference']:.0e}"


def _summary(rows: Sequence[Row], backend: str, total: int) -> str:
    measured = [row for row in rows if row["backend"] == backend and is_measured(row)]
    if not measured:
        return f"`{backend}`: none of {total} models is measured."
    different = [row["model"] for row in measured if not row["is_equal"]]
    compared = "log-likelihoods and generated texts" if _generates(backend) else "log-likelihoods"
    agree = f"{compared} agree with lm-eval's in {_all_but(different)}"
    shortest = min(row["prompt_tokens"] for row in measured)
    return (
        f"`{backend}`: {len(measured)} of {total} models are measured; {agree}. The longest prompt of each has"
        f" {shortest} tokens or more."
    )


def _generates(backend: str) -> bool:
    """Return whether the tasks of unquantized models with this backend include one that generates text."""
    return any("max_gen_toks" in settings for settings in tasks_of(UNQUANTIZED, backend).values())


def _bytes_summary(rows: Sequence[Row]) -> str:
    planned = [row for row in rows if is_measured(row) and row["planned_bytes"] is not None]
    wrong = dict.fromkeys(row["model"] for row in planned if row["planned_bytes"] != row["stored_bytes"])
    unknown = dict.fromkeys(row["model"] for row in rows if is_measured(row) and row["planned_bytes"] is None)
    sentence = f"The planned bytes of the weights equal the stored bytes in {_all_but([*wrong, *unknown])}."
    return f"{sentence} hpcq does not know the size of {', '.join(unknown)}." if unknown else sentence


def _all_but(names: Sequence[str]) -> str:
    return f"all of them, except {', '.join(names)}" if names else "all of them"


def _sharing(row: Row | None) -> str:
    if row is None or not is_measured(row):
        return NOT_MEASURED
    return "yes" if row["sharing"] in _SHARED else f"no: {row['sharing'] or 'the reason was not recorded'}"


def _cell(row: Row | None) -> str:
    return NOT_MEASURED if row is None else outcome_text(row, row["refused"] or row["failed"])
