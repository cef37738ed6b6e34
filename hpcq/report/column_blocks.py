"""Columns of a table in blocks that fit a width."""

from __future__ import annotations

from collections.abc import Sequence

from hpcq.report.table import Column, Table
from hpcq.report.text_tables import GAP, natural_widths


def heading(column: Column, *, with_detail: bool) -> str:
    """Return the heading in one line, or in two if a column of the block has a detail."""
    # rich moves shorter headings down: a blank line keeps all names in the first line.
    return f"{column.name}\n{column.detail or ' '}" if with_detail else column.name


def column_blocks(table: Table, width: int | None) -> list[list[int]]:
    """Split the columns into blocks that fit `width`. Each starts with the columns of names."""
    widths = natural_widths([[heading(column, with_detail=True) for column in table.columns], *table.lines])

    def fits(block: Sequence[int]) -> bool:
        return width is None or sum(widths[at] for at in block) + GAP * (len(block) - 1) <= width

    first_cost = len(widths) - table.last_together
    costs = list(range(first_cost, len(widths)))
    names = list(range(table.left_columns))
    blocks = [names]
    last = [costs] if costs and fits([*names, *costs]) else [[at] for at in costs]
    for group in (*([at] for at in range(len(names), first_cost)), *last):
        if len(blocks[-1]) > len(names) and not fits(blocks[-1] + group):
            blocks.append(names)
        blocks[-1] = blocks[-1] + group
    return blocks
