"""Table of the differences from the baseline: one line per variant and task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hpcq.report.add_comparisons import SuiteResult
from hpcq.report.number_formats import MISSING
from hpcq.report.paired import PairedResult
from hpcq.report.rows import Row
from hpcq.report.table import Column, Table, format_interval, format_points, format_signed

_TITLE = "Difference from unquantized on the same items, percentage points, with 95 % interval"
_HEADINGS = ("variant", "task", "difference", "recovery", "lost", "gained", "p", "detectable", "verdict")
_LEGEND = (
    "Recovery: score divided by that of the unquantized variant. Lost: items that only the unquantized variant answers"
    " correctly. Gained: items that only this variant answers correctly. p: two-sided, corrected for all lines (Holm)."
    " Detectable: smallest difference that these items show with a probability of 80 %. Equivalent: the difference is"
    " within {margin} (two one-sided tests at 5 %)."
)


def comparison_table(
    rows: Sequence[Row], suites: Sequence[SuiteResult], names: Mapping[tuple[str, str], str]
) -> Table | None:
    """Return the table; None if nothing was compared.

    Args:
        rows: All rows.
        suites: Mean differences of variants.
        names: Name of each run and variant in the main table.
    """
    lines: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    margins = {row.paired.margin for row in rows if row.paired}
    for row in rows:
        if row.paired is not None and row.is_main:
            line = (row.run, row.variant)
            lines.setdefault(line, []).append((names[line], row.task, *_cells(row, row.paired)))
    for suite in suites:
        lines[suite.run, suite.variant].append(_suite_line(suite, names[suite.run, suite.variant]))
    if not lines:
        return None
    return Table(
        title=_TITLE,
        columns=tuple(Column(name=name) for name in _HEADINGS),
        lines=tuple(line for own in lines.values() for line in _named_once(own)),
        notes=tuple(_LEGEND.format(margin=format_points(100 * margin)) for margin in margins),
        left_columns=2,
    )


def _named_once(lines: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Yield the lines of a variant: its name only in the first."""
    for at, (name, *cells) in enumerate(lines):
        yield ("" if at else name, *cells)


def _cells(row: Row, paired: PairedResult) -> Iterator[str]:
    yield f"{format_signed(100 * (row.delta or 0.0))} ({format_interval(paired.delta_low, paired.delta_high)})"
    yield MISSING if paired.recovery is None else f"{100 * paired.recovery:.1f}"
    yield MISSING if paired.lost is None else str(paired.lost)
    yield MISSING if paired.gained is None else str(paired.gained)
    yield format_p(paired.p_value if paired.adjusted_p_value is None else paired.adjusted_p_value)
    yield f"{100 * paired.detectable:.1f}"
    yield str(paired.verdict)


def _suite_line(suite: SuiteResult, name: str) -> tuple[str, ...]:
    interval = format_interval(suite.delta_low, suite.delta_high)
    difference = f"{format_signed(100 * suite.delta)} ({interval})"
    mean = f"mean of {len(suite.tasks)} tasks"
    return (name, mean, difference, MISSING, MISSING, MISSING, format_p(suite.p_value), MISSING, str(suite.verdict))


def format_p(p_value: float) -> str:
    """Format with two significant digits: '0.034', '<0.001'."""
    return "<0.001" if p_value < 0.001 else f"{p_value:.2g}"  # noqa: PLR2004 (smallest value shown)
