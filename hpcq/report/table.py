"""The table that a person reads: a line a variant, a column a task, in percent; text cells only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpcq.report.rows import Row

MINUS = "\N{MINUS SIGN}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
MISSING = "\N{EN DASH}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text, ready for any format."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def make_table(rows: Sequence[Row], *, title: str, notes: Sequence[str] = ()) -> Table:
    """Pivot the main metric of each task.

    A cell is 'score ± standard error (difference from the unquantized model)'.
    """
    main = [row for row in rows if row.is_main]
    tasks = list(dict.fromkeys(row.task for row in main))
    items = {row.task: row.n for row in main}
    variants = list(dict.fromkeys(row.variant for row in rows))
    models = list(dict.fromkeys(row.model for row in rows))
    columns = ("variant", *(f"{task} (n={items[task]})" for task in tasks), "GB on disk", "quantize", "evaluate")
    lines = []
    for variant in variants:
        of_variant = [row for row in rows if row.variant == variant]
        first = of_variant[0]
        cells = {row.task: _cell(row) for row in of_variant if row.is_main}
        name = first.scheme if len(models) == 1 else f"{first.model.rsplit('/', 1)[-1]} {first.scheme}"
        lines.append(
            (
                name,
                *(cells.get(task, MISSING) for task in tasks),
                _gigabytes(first.checkpoint_bytes),
                duration(first.quantize_seconds),
                duration(first.evaluate_seconds),
            )
        )
    return Table(title=title, columns=columns, lines=tuple(lines), notes=tuple(notes))


def _cell(row: Row) -> str:
    cell = f"{100 * row.value:.1f}"
    if row.stderr is not None:
        cell += f" {PLUS_MINUS} {100 * row.stderr:.1f}"
    if row.delta is not None:
        cell += f" ({signed(100 * row.delta)})"
    if row.published_value is not None:
        cell += f" [{row.published_value:.1f}]"
    return cell


def signed(number: float) -> str:
    """One decimal with its sign; a true minus, and no '-0.0'."""
    text = f"{abs(number):.1f}"
    if text == "0.0":
        return "0.0"
    return f"{MINUS}{text}" if number < 0 else f"+{text}"


def _gigabytes(size: int | None) -> str:
    return MISSING if size is None else f"{size / 1e9:.3f}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: '45 s', '3 min 05 s', '2 h 10 min'."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    hours, rest_minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {rest_minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
