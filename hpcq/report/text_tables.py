"""Layout of plain-text tables by rich, without colours: the same on a terminal, in a pipe and in a file."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len

if TYPE_CHECKING:
    from rich.table import Table

GAP = 2
"""Blanks between two columns."""

MIN_FOLDED_WIDTH = 18
"""A column narrower than this is not folded further; the lines are longer than the terminal instead."""

_RULE = "─"
_RULED = "    \n    \n────\n    \n    \n    \n    \n    \n"
"""One rule below the headings, no other lines."""

_UNLIMITED = 1_000_000


def ruled_table(
    headings: Sequence[str], lines: Sequence[Sequence[str]], *, left: int = 1, width: int | None = None
) -> list[str]:
    """Return a table with headings and a rule below them.

    Args:
        headings: One per column; may have several lines.
        lines: Cells of the table.
        left: Number of columns that are aligned to the left; the others are aligned to the right.
        width: Width of the terminal. If the table is wider, the first column is folded. None: unlimited.
    """
    widths = natural_widths([headings, *lines])
    folded = _folded(widths[0], widths[1:], width)
    if folded == widths[0] and not any("\n" in cell for cells in lines for cell in cells):
        return [*_heading(headings, widths, left), *(_aligned(cells, widths, left) for cells in lines)]
    from rich.box import Box
    from rich.table import Table

    table = Table(
        box=Box(_RULED), show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0)
    )  # the box adds one blank
    widths[0] = folded
    for at, heading in enumerate(headings):
        table.add_column(heading, justify="left" if at < left else "right", width=widths[at], overflow="fold")
    for line in lines:
        table.add_row(*line)
    return _rendered(table)


def _heading(headings: Sequence[str], widths: Sequence[int], left: int) -> Iterator[str]:
    """Yield the lines of the headings, the shorter ones at the bottom, and the rule below them."""
    parts = [heading.split("\n") for heading in headings]
    height = max(map(len, parts))
    for cells in zip(*([""] * (height - len(part)) + part for part in parts), strict=True):
        yield _aligned(cells, widths, left)
    yield _RULE * (sum(widths) + GAP * (len(widths) - 1))


def _aligned(cells: Sequence[str], widths: Sequence[int], left: int) -> str:
    """Return the cells of one line that is not folded, aligned as rich does it, which takes 0.1 s to import."""
    padded = (
        cell + " " * (width - cell_len(cell)) if at < left else " " * (width - cell_len(cell)) + cell
        for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return (" " * GAP).join(padded).rstrip()


def aligned_columns(lines: Sequence[Sequence[str]], *, width: int | None = None) -> list[str]:
    """Return `lines` of cells as columns aligned to the left, without headings and rules.

    Args:
        lines: Cells of the table.
        width: Width of the terminal. If the table is wider, the last column is folded. None: unlimited.
    """
    if not lines:
        return []
    *widths, last = natural_widths(lines)
    folded = _folded(last, widths, width)
    if folded == last and not any("\n" in cell for cells in lines for cell in cells):
        return [_padded(cells, widths) for cells in lines]
    from rich.table import Table

    table = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    for column_width in (*widths, folded):
        table.add_column(width=column_width, overflow="fold")
    for line in lines:
        table.add_row(*line)
    return _rendered(table)


def _padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return the cells of one line that is not folded: most lines, for which rich need not be imported."""
    padded = (cell + " " * (width + GAP - cell_len(cell)) for cell, width in zip(cells, widths, strict=False))
    return ("".join(padded) + cells[-1]).rstrip()


def natural_widths(lines: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of each column if no cell is folded."""
    return [max(cell_len(part) for cell in cells for part in cell.split("\n")) for cells in zip(*lines, strict=True)]


def _folded(natural: int, others: Sequence[int], width: int | None) -> int:
    """Return the width of a column that is folded so that it fits next to `others`."""
    if width is None:
        return natural
    return min(natural, max(MIN_FOLDED_WIDTH, width - sum(others) - GAP * len(others)))


def _rendered(table: Table) -> list[str]:
    from rich.console import Console

    # Explicit settings: otherwise rich takes some from the environment (FORCE_COLOR, COLUMNS, a notebook), and reads
    # markup and emoji codes in cells.
    console = Console(
        file=io.StringIO(),
        width=_UNLIMITED,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
    )
    return ["".join(segment.text for segment in line).rstrip() for line in console.render_lines(table, pad=False)]
