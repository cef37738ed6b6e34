"""Layout of plain-text tables by rich, without colours: the same on a terminal, in a pipe and in a file."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.box import Box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

GAP = 2
"""Blanks between two columns."""

MIN_FOLDED_WIDTH = 18
"""A column narrower than this is not folded further; the lines are longer than the terminal instead."""

_RULED = Box("    \n    \n────\n    \n    \n    \n    \n    \n")
"""One rule below the headings, no other lines."""

_UNLIMITED = 1_000_000


def ruled_table(headings: Sequence[str], lines: Sequence[Sequence[str]], *, width: int | None = None) -> list[str]:
    """Return a table with headings and a rule below them: the first column to the left, the others to the right.

    Args:
        headings: One per column; may have several lines.
        lines: Cells of the table.
        width: Width of the terminal. If the table is wider, the first column is folded. None: unlimited.
    """
    table = Table(box=_RULED, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))  # the box adds one blank
    widths = natural_widths([headings, *lines])
    widths[0] = _folded(widths[0], widths[1:], width)
    for at, heading in enumerate(headings):
        table.add_column(heading, justify="right" if at else "left", width=widths[at], overflow="fold")
    for line in lines:
        table.add_row(*line)
    return _rendered(table)


def aligned_columns(lines: Sequence[Sequence[str]], *, width: int | None = None) -> list[str]:
    """Return `lines` of cells as columns aligned to the left, without headings and rules.

    Args:
        lines: Cells of the table.
        width: Width of the terminal. If the table is wider, the last column is folded. None: unlimited.
    """
    if not lines:
        return []
    table = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    *widths, last = natural_widths(lines)
    for column_width in (*widths, _folded(last, widths, width)):
        table.add_column(width=column_width, overflow="fold")
    for line in lines:
        table.add_row(*line)
    return _rendered(table)


def natural_widths(lines: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of each column if no cell is folded."""
    return [max(cell_len(part) for cell in cells for part in cell.split("\n")) for cells in zip(*lines, strict=True)]


def _folded(natural: int, others: Sequence[int], width: int | None) -> int:
    """Return the width of a column that is folded so that it fits next to `others`."""
    if width is None:
        return natural
    return min(natural, max(MIN_FOLDED_WIDTH, width - sum(others) - GAP * len(others)))


def _rendered(table: Table) -> list[str]:
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
