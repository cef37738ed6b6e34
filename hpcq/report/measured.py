"""Notes of a report on what was measured: backend, data type, device, kernels, prefix sharing, versions and items.

Facts that are the same for all variants are stated once; others are stated with the names of the variants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hpcq.report.line import Line
from hpcq.report.rows import Row

MAX_NAMES = 6
"""Maximum number of variants that a note names; the others are counted."""


def measured_notes(rows: Sequence[Row], names: Mapping[Line, str]) -> Iterator[str]:
    """Yield the facts of all variants, the facts of single variants, and the tasks with a part of their items.

    Args:
        rows: All rows of the report.
        names: Name of each line of the main table.
    """
    lines = {(row.run, row.variant): row for row in reversed(rows) if row.value is not None or row.versions}
    if not lines:
        return
    facts = {line: _facts(row) for line, row in reversed(lines.items())}
    common = set.intersection(*(set(own) for own in facts.values()))
    shared = [fact for fact in next(iter(facts.values())) if fact in common]
    if shared:
        yield f"Measured with {'; '.join(shared)}."
    others: dict[tuple[str, ...], list[str]] = {}
    for line, own in facts.items():
        others.setdefault(tuple(fact for fact in own if fact not in common), []).append(names[line])
    for different, alike in others.items():
        if different:
            yield f"{_listed(alike)}: measured with {'; '.join(different)}."
    yield from _items(rows)


def _facts(row: Row) -> list[str]:
    """Return what is known about the computation of a variant's responses."""
    return [
        f"backend {row.backend}",
        f"data type {row.dtype or 'not recorded'}",
        f"device {row.device or row.gpu_class or 'not recorded'}",
        f"kernels {row.kernels}" if row.kernels else "no kernels named",
        f"prefix sharing: {row.prefix_sharing}" if row.prefix_sharing else "prefix sharing not recorded",
        row.versions or "versions not recorded",
    ]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _items(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the tasks of which not all documents were evaluated."""
    parts = dict.fromkeys(
        f"{row.task} {row.n:,} of {row.documents:,}"
        for row in rows
        if row.is_main and row.value is not None and row.documents and row.n < row.documents
    )
    if parts:
        yield f"Items: {', '.join(parts)} of the full benchmark."
