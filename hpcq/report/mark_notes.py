"""Notes of a report on the marks of its rows: one sentence per kind of mark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hpcq.report.rows import Row
from hpcq.verify.marks import Mark, MarkKind

MAX_TASKS = 6
"""Tasks of a variant that a note names; the others are counted."""


def symbols(marks: Iterable[Mark]) -> str:
    """Return what is added to a cell: ' ^C,S'; '' without marks."""
    found = ",".join(dict.fromkeys(mark.kind.symbol for mark in marks))
    return f" ^{found}" if found else ""


def mark_notes(rows: Sequence[Row], names: Mapping[tuple[str, str], str]) -> list[str]:
    """Return the notes, in the order of `MarkKind`.

    Args:
        rows: All rows of the report.
        names: By run and variant: the name of its line in the table.
    """
    columns = {row.task for row in rows if row.is_main}
    notes = []
    for kind in MarkKind:
        details = {
            line: _details(kind, [row for row in rows if (row.run, row.variant) == line], columns) for line in names
        }
        parts = [f"{names[line]}: {text}" for line, text in details.items() if text]
        if parts:
            notes.append(f"^{kind.symbol} {kind.label}: {'; '.join(parts)}.")
    return notes


def _details(kind: MarkKind, rows: Iterable[Row], columns: set[str]) -> str:
    """Return what was found for one variant. Of a group and its members, the group is named if the table has it."""
    marks = dict.fromkeys(mark for row in rows for mark in row.marks if mark.kind is kind)
    shown = [mark for mark in marks if not mark.task or mark.task in columns] or list(marks)
    texts = [f"{mark.task} {mark.detail}" if mark.task else mark.detail for mark in shown]
    more = [f"{len(texts) - MAX_TASKS} more tasks (see `--format csv`)"] if len(texts) > MAX_TASKS else []
    return ", ".join((*texts[:MAX_TASKS], *more))
