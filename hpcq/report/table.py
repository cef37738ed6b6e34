"""Pivoted table of a report: one line per variant, one column per task; digits and signs of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hpcq.core.sentences import one_line
from hpcq.report.mark_notes import mark_notes, symbols
from hpcq.report.model_labels import model_labels
from hpcq.report.rows import Row

MINUS = "\N{MINUS SIGN}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
MISSING = "\N{EN DASH}"
CROSS_BACKEND_MARK = "\N{DAGGER}"
"""Marks a difference between scores from different backends."""
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
    """A table of text cells for any output format. The last columns are COST_COLUMNS."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def headings(self) -> tuple[str, ...]:
        """Name and detail of each column in one line."""
        return tuple(f"{column.name} ({column.detail})" if column.detail else column.name for column in self.columns)


def make_table(rows: Sequence[Row], *, title: str, notes: Sequence[str] = ()) -> Table:
    """Pivot the main metric of each task.

    A cell is 'score ±standard error (difference from the unquantized model)'. The number of items is in the heading,
    or in each cell if it differs between lines.
    """
    items: dict[str, set[int]] = {}
    rows_by_line: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        rows_by_line.setdefault((row.run, row.variant), []).append(row)
        if row.is_main:
            items.setdefault(row.task, set())
            if row.value is not None:
                items[row.task].add(row.n)
    several_runs = len({row.run for row in rows}) > 1
    labels = model_labels(row.model_identity for row in rows)
    tasks = [Column(name=task, detail=f"n={min(counts)}" if len(counts) == 1 else "") for task, counts in items.items()]
    lines, names = [], {}
    for line, line_rows in rows_by_line.items():
        first = line_rows[0]
        names[line] = _line_name(
            first, labels[first.model_identity] if len(labels) > 1 else None, with_run=several_runs
        )
        cells = {row.task: _format_score(row, with_items=len(items[row.task]) > 1) for row in line_rows if row.is_main}
        lines.append(
            (
                names[line] + symbols(mark for mark in first.marks if not mark.task),
                *(cells.get(task.name, MISSING) for task in tasks),
                _format_gigabytes(first.checkpoint_bytes),
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
    )


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
    cell = f"{100 * row.value:.1f}"
    if row.stderr is not None:
        cell += f" {PLUS_MINUS}{100 * row.stderr:.1f}"
    if row.delta is not None:
        cell += f" ({format_signed(100 * row.delta)}{CROSS_BACKEND_MARK if row.is_cross_backend else ''})"
    if row.published_value is not None:
        cell += f" [{row.published_value:.1f}]"
    if with_items:
        cell += f" n={row.n}"
    return cell + marked


def format_signed(number: float) -> str:
    """Format with sign and one decimal. Uses the minus sign U+2212, and '0.0' without a sign."""
    text = f"{abs(number):.1f}"
    if text == "0.0":
        return "0.0"
    return f"{MINUS}{text}" if number < 0 else f"+{text}"


def _format_gigabytes(size: int | None) -> str:
    return MISSING if size is None else f"{size / 1e9:.3f}"


def _format_tokens(row: Row) -> str:
    if not row.asked_tokens or row.computed_tokens is None:
        return MISSING
    return f"{format_count(row.computed_tokens)} of {format_count(row.asked_tokens)}"


def format_count(count: float) -> str:
    """Format with an SI prefix: '987', '310 k', '1.2 M'."""
    for power, prefix in ((9, "G"), (6, "M"), (3, "k")):
        # A count that rounds up to 1000 of a prefix gets the next larger prefix.
        if count >= 10**power - 10 ** (power - 3) / 2:
            scaled = count / 10**power
            return f"{scaled:.1f} {prefix}" if round(scaled, 1) < 10 else f"{scaled:.0f} {prefix}"  # noqa: PLR2004
    return f"{count:.0f}"


def format_token_savings(asked: float, computed: float) -> str:
    """Format the effect of prefix sharing: '1.2 M requested, 310 k computed (3.9x fewer)'."""
    ratio = f"{asked / computed:.1f}" if computed else "1.0"
    fewer = "" if ratio == "1.0" else f" ({ratio}x fewer)"
    return f"{format_count(asked)} requested, {format_count(computed)} computed{fewer}"


def format_duration(seconds: float | None) -> str:
    """Format seconds as '45 s', '3 min 05 s' or '2 h 10 min'."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    hours, rest_minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {rest_minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
