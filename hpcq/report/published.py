"""Comparison with published scores of the same model, scheme and task, on the scale of the study."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from math import sqrt
from types import MappingProxyType

from hpcq.catalog.published_scores import PublishedScore, find_published_score, study_names
from hpcq.core.errors import UserInputError
from hpcq.report.baselines import RequestSettings
from hpcq.report.rows import Row
from hpcq.report.study_protocol import protocol_differences
from hpcq.report.study_scale import StudyScale

ALL_STUDIES = "published"
NORMAL_95 = 1.959963984540054
"""97.5 % quantile of the normal distribution."""

Settings = Mapping[tuple[str, str], RequestSettings]
"""What determines the requests, by run and variant."""


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


def add_published_scores(
    rows: Sequence[Row], studies: Sequence[str], settings: Settings = MappingProxyType({})
) -> tuple[list[Row], tuple[str, ...]]:
    """Add published scores to the main rows.

    Args:
        rows: Rows of a report.
        studies: Studies in order of preference: the first one with the score is used.
        settings: What determines the requests of the variants.

    Returns:
        The rows, and notes about the comparison for the reader.
    """
    scale = StudyScale(rows)
    compared = [_add_published_score(row, studies, scale, settings) for row in rows]
    if any(row.published_value is not None for row in compared):
        return compared, (f"In [brackets]: score published in {', '.join(studies)}, in percent.",)
    return compared, (f"{', '.join(studies)}: no published score for these models, schemes and tasks.",)


def _add_published_score(row: Row, studies: Sequence[str], scale: StudyScale, settings: Settings) -> Row:
    if not row.is_main or row.value is None:
        return row
    for study in studies:
        published = find_published_score(study, row.model, row.scheme, row.task)
        if published:
            return _compared(row, published, scale, settings.get((row.run, row.variant)))
    return row


def _compared(row: Row, published: PublishedScore, scale: StudyScale, settings: RequestSettings | None) -> Row:
    own = scale.find(row, published.task)
    if own is None:
        return row
    delta, half = own.value - published.value, None
    if own.error is not None and published.cell.error is not None:
        half = NORMAL_95 * sqrt(own.error**2 + published.cell.error**2)
    return dataclasses.replace(
        row,
        published_value=published.value,
        published_delta=delta,
        published_source=published.study,
        published_scale=str(published.task.scale),
        published_own=own.value,
        published_low=None if half is None else delta - half,
        published_high=None if half is None else delta + half,
        published_protocol=tuple(protocol_differences(row, own, published, settings)),
    )
