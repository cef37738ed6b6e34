"""The table that a person reads: a line a run's variant, a column a task, in percent; text cells only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpcq.report.rows import Row

MINUS = "\N{MINUS SIGN}"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
MISSING = "\N{EN DASH}"
ACROSS = "\N{DAGGER}"
"""Beside a difference between scores of different back ends."""
COSTS = ("GB on disk", "quantize", "evaluate", "tokens computed")


@dataclass(frozen=True, kw_only=True)
class Column:
    """What stands above a column. detail: what is true of all its cells."""

    name: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text, ready for any format. The last columns are COSTS."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def headings(self) -> tuple[str, ...]:
        """Each column's name and detail on one line."""
        return tuple(f"{column.name} ({column.detail})" if column.detail else column.name for column in self.columns)


def make_table(rows: Sequence[Row], *, title: str, notes: Sequence[str] = ()) -> Table:
    """Pivot the main metric of each task.

    A cell is 'score ±standard error (difference from the unquantized model)'; the number of items stands above it, or
    in it where lines differ.
    """
    items: dict[str, set[int]] = {}
    of_line: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        of_line.setdefault((row.run, row.variant), []).append(row)
        if row.is_main:
            items.setdefault(row.task, set()).add(row.n)
    several_runs = len({row.run for row in rows}) > 1
    several_models = len({row.model for row in rows}) > 1
    tasks = [Column(name=task, detail=f"n={min(counts)}" if len(counts) == 1 else "") for task, counts in items.items()]
    lines = []
    for of_variant in of_line.values():
        first = of_variant[0]
        cells = {row.task: _cell(row, with_items=len(items[row.task]) > 1) for row in of_variant if row.is_main}
        lines.append(
            (
                _name(first, with_run=several_runs, with_model=several_models),
                *(cells.get(task.name, MISSING) for task in tasks),
                _gigabytes(first.checkpoint_bytes),
                duration(first.quantize_seconds),
                duration(first.evaluate_seconds),
                _tokens(first),
            )
        )
    columns = (Column(name="variant"), *tasks, *(Column(name=cost) for cost in COSTS))
    return Table(title=title, columns=columns, lines=tuple(lines), notes=tuple(notes))


def _name(row: Row, *, with_run: bool, with_model: bool) -> str:
    name = f"{row.model.rsplit('/', 1)[-1]} {row.scheme}" if with_model else row.scheme
    return f"{row.run}: {name}" if with_run else name


def _cell(row: Row, *, with_items: bool) -> str:
    cell = f"{100 * row.value:.1f}"
    if row.stderr is not None:
        cell += f" {PLUS_MINUS}{100 * row.stderr:.1f}"
    if row.delta is not None:
        cell += f" ({signed(100 * row.delta)}{ACROSS if row.is_across_backends else ''})"
    if row.published_value is not None:
        cell += f" [{row.published_value:.1f}]"
    if with_items:
        cell += f" n={row.n}"
    return cell


def signed(number: float) -> str:
    """One decimal with its sign; a true minus, and no '-0.0'."""
    text = f"{abs(number):.1f}"
    if text == "0.0":
        return "0.0"
    return f"{MINUS}{text}" if number < 0 else f"+{text}"


def _gigabytes(size: int | None) -> str:
    return MISSING if size is None else f"{size / 1e9:.3f}"


def _tokens(row: Row) -> str:
    if not row.asked_tokens or row.computed_tokens is None:
        return MISSING
    return f"{rounded(row.computed_tokens)} of {rounded(row.asked_tokens)}"


def rounded(count: float) -> str:
    """A large number as a person says it: '987', '310 k', '1.2 M'."""
    for power, sign in ((9, "G"), (6, "M"), (3, "k")):
        # What would be rounded up to the next sign's one is said with that sign.
        if count >= 10**power - 10 ** (power - 3) / 2:
            share = count / 10**power
            return f"{share:.1f} {sign}" if round(share, 1) < 10 else f"{share:.0f} {sign}"  # noqa: PLR2004
    return f"{count:.0f}"


def sharing(asked: float, computed: float) -> str:
    """What sharing prefixes saves: '1.2 M asked for, 310 k computed (3.9 times fewer)'."""
    ratio = f"{asked / computed:.1f}" if computed else "1.0"
    fewer = "" if ratio == "1.0" else f" ({ratio} times fewer)"
    return f"{rounded(asked)} asked for, {rounded(computed)} computed{fewer}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: '45 s', '3 min 05 s', '2 h 10 min'."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    hours, rest_minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {rest_minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
