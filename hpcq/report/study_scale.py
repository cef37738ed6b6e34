"""Scores of a variant on the scale of a study: raw metrics, or the normalized scale of leaderboard version 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

from hpcq.catalog.leaderboard import Scale, ScorePart, normalized_mean
from hpcq.catalog.published_tables import StudyTask
from hpcq.core.frozen import dataclass
from hpcq.report.line import Line
from hpcq.report.rows import Row


@dataclass(frozen=True, kw_only=True)
class ScaledScore:
    """A score in percent on the scale of a study.

    Attributes:
        value: The score.
        error: Its standard error; None: unknown.
        n: Number of items.
    """

    value: float
    error: float | None
    n: int


class StudyScale:
    """Converts main scores to the scale of a study, from the scores of the subtasks where it needs them."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """Read the scores of all variants."""
        self._parts: Mapping[tuple[Line, str, str], Row] = {
            ((row.run, row.variant), row.task, row.metric): row for row in rows if row.value is not None
        }

    def find(self, row: Row, task: StudyTask) -> ScaledScore | None:
        """Return the score of the row's variant; None: the score of a part is missing."""
        if task.scale is Scale.RAW:
            error = None if row.stderr is None else 100 * row.stderr
            return None if row.value is None else ScaledScore(value=100 * row.value, error=error, n=row.n)
        found: dict[ScorePart, Row] = {}
        for part in task.parts:
            own = self._parts.get(((row.run, row.variant), part.task, part.metric))
            if own is None:
                return None
            found[part] = own
        values = {part: own.value for part, own in found.items() if own.value is not None}
        same_items = len({part.task for part in found}) == 1
        sizes = [own.n for own in found.values()]
        return ScaledScore(
            value=normalized_mean(values),
            error=_error(found, same_items=same_items),
            n=sizes[0] if same_items else sum(sizes),
        )


def _error(parts: Mapping[ScorePart, Row], *, same_items: bool) -> float | None:
    """Return the standard error of the mean of the parts. Errors of two metrics of the same items are added."""
    errors = [part.factor * row.stderr for part, row in parts.items() if row.stderr is not None]
    if same_items:  # lm-eval has no standard error of IFEval's accuracy per instruction, which is the smaller one
        return sum(errors) / len(errors) if errors else None
    return sqrt(sum(error**2 for error in errors)) / len(errors) if len(errors) == len(parts) else None
