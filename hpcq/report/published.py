"""Comparison with published scores of the same model, scheme and task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hpcq.catalog.published_scores import find_published_score, study_names
from hpcq.core.errors import UserInputError
from hpcq.report.rows import Row

ALL_STUDIES = "published"


def find_studies(compare: str, *, place: str) -> tuple[str, ...]:
    """Return the studies that `compare` selects.

    Args:
        compare: Name of a study in the catalog, or 'published' for all of them.
        place: Option or manifest key with this value, for the error message.

    Raises:
        UserInputError: The catalog has no such study.
    """
    if compare == ALL_STUDIES:
        return study_names()
    if compare not in study_names():
        raise UserInputError(f"{place} {compare}: unknown study. Studies in the catalog: {', '.join(study_names())}.")
    return (compare,)


def add_published_scores(rows: Sequence[Row], studies: Sequence[str]) -> tuple[list[Row], tuple[str, ...]]:
    """Add published scores to the main rows.

    Args:
        rows: Rows of a report.
        studies: Studies in order of preference: the first one with the score is used.

    Returns:
        The rows, and notes about the comparison for the reader.
    """
    compared = [_add_published_score(row, studies) for row in rows]
    if any(row.published_value is not None for row in compared):
        return compared, (f"In [brackets]: score published in {', '.join(studies)}, in percent.",)
    return compared, (f"{', '.join(studies)}: no published score for these models, schemes and tasks.",)


def _add_published_score(row: Row, studies: Sequence[str]) -> Row:
    if not row.is_main or row.value is None:
        return row
    for study in studies:
        published = find_published_score(study, row.model, row.scheme, row.task)
        if published:
            return dataclasses.replace(
                row,
                published_value=published.value,
                published_delta=100 * row.value - published.value,
                published_source=study,
            )
    return row
