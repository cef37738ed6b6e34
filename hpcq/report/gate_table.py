"""Table of the checks of a gate."""

from __future__ import annotations

from collections.abc import Iterator

from hpcq.core.sentences import one_line
from hpcq.report.gate import GateCheck, GateResult, GateVerdict
from hpcq.report.number_formats import MISSING
from hpcq.report.table import Column, Table, format_interval, format_signed

_HEADINGS = ("variant", "task", "difference", "margin", "detectable", "gate")
_LEGEND = (
    "Difference from unquantized with its 90 % interval, in points. PASS: the loss is at most the margin (one-sided"
    " test at 5 %). FAIL: it is above the margin (the same, corrected for all checks). Detectable: smallest difference"
    " that is found with a probability of 80 %."
)
_POWER = " It must be at most the margin."
MAX_REASONS = 8
"""Checks whose reason is a note; the others are counted. JSON has all of them."""


def gate_table(result: GateResult) -> Table:
    """Return the checks as a table, with the summary as title."""
    lines = tuple(tuple(map(one_line, _cells(check))) for check in result.checks)
    legend = _LEGEND + (_POWER if result.policy.require_power else "")
    return Table(
        title=one_line(result.summary),
        columns=tuple(Column(name=name) for name in _HEADINGS),
        lines=lines,
        notes=(*map(one_line, _reasons(result)), legend),
        left_columns=2,
    )


def _cells(check: GateCheck) -> Iterator[str]:
    yield check.name
    yield check.subject
    if check.delta is None or check.delta_low is None or check.delta_high is None:
        yield MISSING
    else:
        yield f"{format_signed(100 * check.delta)} ({format_interval(check.delta_low, check.delta_high)})"
    yield f"{100 * check.margin:g}"
    yield MISSING if check.detectable is None else f"{100 * check.detectable:.1f}"
    yield str(check.verdict)


def _reasons(result: GateResult) -> Iterator[str]:
    unclear = [check for check in result.checks if check.verdict is GateVerdict.CANNOT_TELL]
    for check in unclear[:MAX_REASONS]:
        yield f"{check.verdict}: {check.name} on {check.subject}: {check.reason}."
    if len(unclear) > MAX_REASONS:
        yield f"{len(unclear) - MAX_REASONS} more checks cannot tell (see `--format json`)."
    marked = [check for check in result.checks if check.marks]
    if marked:
        yield f"{len(marked)} of {len(result.checks)} checks are about scores with marks (see the notes of the scores)."
