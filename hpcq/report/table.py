"""Pivoted table of a report: one line per variant, one column per task; digits and signs of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hpcq.catalog.leaderboard import Scale
from hpcq.core.frozen import dataclass
from hpcq.core.sentences import one_line
from hpcq.report.mark_notes import mark_notes, symbols
from hpcq.report.model_labels import model_labels
from hpcq.report.number_formats import MISSING, format_count, format_duration, format_gigabytes
from hpcq.report.paired import Verdict
from hpcq.report.rows import Row

MINUS = "\N{MINUS SIGN}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
CROSS_BACKEND_MARK = "\N{DAGGER}"
"""Marks a difference between scores from different backends."""
NOT_COMPARABLE_MARK = "\N{SECTION SIGN}"
"""Marks a task whose scores in several runs are of different requests."""
VERDICT_SYMBOLS = {
    Verdict.EQUIVALENT: "\N{ALMOST EQUAL TO}",
    Verdict.WORSE: "\N{DOWNWARDS ARROW}",
    Verdict.BETTER: "\N{UPWARDS ARROW}",
    Verdict.CANNOT_TELL: "?",
}
COST_COLUMNS = ("GB on disk", "quantize", "evaluate", "tokens computed")


@dataclass(frozen=True, kw_only=True)
class Column:
    """Heading of a column.

    Attributes:
        name: First line of the heading.
        detail: Second line: what applies to all cells of the column, e.g. 'n=40'.
    """

    name: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text cells for any output format.

    Attributes:
        title: Sentence above the table.
        columns: Headings.
        lines: Cells.
        notes: Sentences below the table.
        left_columns: Number of columns, from the left, whose cells are aligned to the left.
        last_together: Number of columns, from the right, that stay together where the table is split.
    """

    title: str
    columns: tuple[Column, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    left_columns: int = 1
    last_together: int = 0

    @property
    def headings(self) -> tuple[str, ...]:
        """Name and detail of each column in one line."""
        return tuple(f"{column.name} ({column.detail})" if column.detail else column.name for column in self.columns)


def line_names(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """Return the name of each line of the main table, by run and variant."""
    several_runs = len({row.run for row in rows}) > 1
    labels = model_labels(row.model_identity for row in rows)
    names = {}
    for row in rows:
        if (row.run, row.variant) not in names:
            model = labels[row.model_identity] if len(labels) > 1 else None
            names[row.run, row.variant] = _line_name(row, model, with_run=several_runs)
    return names


def make_table(rows: Sequence[Row], *, title: str, notes: Sequence[str] = ()) -> Table:
    """Pivot the main metric of each task.

    A cell is 'score ±standard error (difference from the unquantized model, verdict)'. The number of items is in the
    heading, or in each cell if it differs between lines.
    """
    items: dict[str, set[int]] = {}
    rows_by_line: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        rows_by_line.setdefault((row.run, row.variant), []).append(row)
        if row.is_main:
            items.setdefault(row.task, set())
            if row.value is not None:
                items[row.task].add(row.n)
    names = line_names(rows)
    differing = {row.task for row in rows if row.not_comparable}
    units = {row.task: _unit(row) for row in rows if row.is_main}
    tasks = [
        Column(
            name=f"{task} {NOT_COMPARABLE_MARK}" if task in differing else task,
            detail=", ".join(filter(None, (units[task], f"n={min(counts)}" if len(counts) == 1 else ""))),
        )
        for task, counts in items.items()
    ]
    lines = []
    for line, line_rows in rows_by_line.items():
        first = line_rows[0]
        cells = {row.task: _format_score(row, with_items=len(items[row.task]) > 1) for row in line_rows if row.is_main}
        lines.append(
            (
                names[line] + symbols(mark for mark in first.marks if not mark.task),
                *(cells.get(task, MISSING) for task in items),
                format_gigabytes(first.checkpoint_bytes),
                format_duration(first.quantize_seconds),
                format_duration(first.evaluate_seconds or None),
                _format_tokens(first),
            )
        )
    columns = (Column(name="variant"), *tasks, *(Column(name=cost) for cost in COST_COLUMNS))
    notes = (*_failure_notes(rows, names), *mark_notes(rows, names), *notes)
    return Table(
        title=one_line(title),
        columns=columns,
        lines=tuple(tuple(map(one_line, cells)) for cells in lines),
        notes=tuple(map(one_line, notes)),
        last_together=len(COST_COLUMNS),
    )


def _unit(row: Row) -> str:
    """Return the metric of a column that is not in percent, and its direction; '' for a share."""
    if row.is_share:
        return ""
    return f"{row.metric}, lower is better" if row.lower_is_better else row.metric


def _failure_notes(rows: Sequence[Row], names: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """Yield a sentence per variant without some of its scores because a unit has failed."""
    failures = {(row.run, row.variant): row.failure for row in rows if row.failure}
    yield from (f"{names[line]}: {failure.sentence}" for line, failure in failures.items())


def _line_name(row: Row, model: str | None, *, with_run: bool) -> str:
    name = f"{model} {row.scheme}" if model else row.scheme
    return f"{row.run}: {name}" if with_run else name


def _format_score(row: Row, *, with_items: bool) -> str:
    marked = symbols(mark for mark in row.marks if mark.task)
    if row.value is None:
        return (row.failure.state if row.failure else MISSING) + marked
    cell = format_value(row, row.value)
    if row.stderr is not None:
        cell += f" {PLUS_MINUS}{format_value(row, row.stderr)}"
    if row.delta is not None:
        verdict = f" {VERDICT_SYMBOLS[row.paired.verdict]}" if row.paired else ""
        cell += f" ({format_delta(row, row.delta)}{CROSS_BACKEND_MARK if row.is_cross_backend else ''}{verdict})"
    if row.published_value is not None and row.published_scale == Scale.RAW:
        cell += f" [{row.published_value:.1f}]"
    if with_items:
        cell += f" n={row.n}"
    return cell + marked


def format_value(row: Row, value: float) -> str:
    """Format a score or its error: a share in percent, other metrics in their own unit."""
    return f"{100 * value:.1f}" if row.is_share else f"{value:.4g}"


def format_delta(row: Row, delta: float) -> str:
    """Format a difference of scores with its sign: of shares in percentage points."""
    if row.is_share:
        return format_signed(100 * delta)
    return f"{MINUS if delta < 0 else '+'}{abs(delta):.3g}"


def format_signed(number: float) -> str:
    """Format with sign and one decimal. Uses the minus sign U+2212, and '0.0' without a sign."""
    text = f"{abs(number):.1f}"
    if text == "0.0":
        return "0.0"
    return f"{MINUS}{text}" if number < 0 else f"+{text}"


def format_points(points: float) -> str:
    """Format percentage points: '1 point', '0.5 points'."""
    return f"{points:g} point" if points == 1 else f"{points:g} points"


def format_interval(low: float, high: float) -> str:
    """Format a range of differences in percentage points: '−1.2 to +3.4'."""
    return f"{format_signed(100 * low)} to {format_signed(100 * high)}"


def _format_tokens(row: Row) -> str:
    if not row.asked_tokens or row.computed_tokens is None:
        return MISSING
    return f"{format_count(row.computed_tokens)} of {format_count(row.asked_tokens)}"
