"""Published scores beside ours: only where model, scheme and task are the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hpcq.catalog.published_scores import find_published, study_names
from hpcq.core.errors import UserInputError
from hpcq.report.rows import Row

ANY = "published"


def studies_named(compare: str, *, place: str) -> tuple[str, ...]:
    """The studies that `compare`, found at `place`, names: 'published' is all of them.

    Raises:
        UserInputError: no such study.
    """
    if compare == ANY:
        return study_names()
    if compare not in study_names():
        raise UserInputError(f"{place} {compare}: no such study; the catalog has {', '.join(study_names())}.")
    return (compare,)


def beside_published(rows: Sequence[Row], studies: Sequence[str]) -> tuple[list[Row], tuple[str, ...]]:
    """`rows` with what the first of `studies` that has it reports, and notes for the reader."""
    found = [_beside(row, studies) for row in rows]
    if any(row.published_value is not None for row in found):
        return found, (f"In [brackets]: the score published in {', '.join(studies)}, in percent.",)
    return found, (f"No score of {', '.join(studies)} is for one of these models, schemes and tasks.",)


def _beside(row: Row, studies: Sequence[str]) -> Row:
    if not row.is_main:
        return row
    for study in studies:
        published = find_published(study, row.model, row.scheme, row.task)
        if published:
            return dataclasses.replace(
                row,
                published_value=published.value,
                published_delta=100 * row.value - published.value,
                published_source=study,
            )
    return row
