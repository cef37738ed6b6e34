"""Differences that a claim is about: pairs of variants, each with the tasks that both have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import sqrt

from hpcq.core.frozen import dataclass
from hpcq.report.claims.claim import Claim, Field, Selection, Value
from hpcq.report.claims.claim_scores import ClaimScore, Subject

MIN_TASKS = 5
"""Tasks of a suite from which a rank correlation is computed."""

PairedError = Callable[[ClaimScore, ClaimScore], float | None]
"""Standard error of the difference of two scores of the same items; None: unknown."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference in one task, or the mean over several.

    Attributes:
        first: What the claim is about.
        second: What it is compared with.
        suite: The suite.
        task: The task; '': the mean over tasks of the suite, or their correlation.
        value: The difference, or the correlation.
        error: Its standard error; None: unknown.
        is_marked: Whether one of the scores has a warning (`hpcq.verify.marks`).
    """

    first: Subject
    second: Subject
    suite: str
    task: str
    value: float
    error: float | None
    is_marked: bool = False

    @property
    def is_cross_backend(self) -> bool:
        """Whether the two were evaluated by different back ends."""
        return self.first.backend != self.second.backend


def independent_error(first: ClaimScore, second: ClaimScore) -> float | None:
    """Return the standard error as if both had answered independent samples of the items."""
    if first.error is None or second.error is None:
        return None
    return sqrt(first.error**2 + second.error**2)


def find_differences(claim: Claim, scores: Sequence[ClaimScore], paired_error: PairedError) -> Iterator[Difference]:
    """Yield the differences in each task, followed by their means per suite (without the claim's exceptions)."""
    baselines = _baselines(scores)
    firsts, seconds = (_selected(scores, selection) for selection in (claim.first, claim.second))
    if claim.value is Value.RANK_CORRELATION:
        for own in firsts.values():
            yield from _correlations(claim, own, baselines)
        return
    has_tasks = any(one.field is Field.TASK for one in (*claim.first, *claim.second))
    for first, own in firsts.items():
        for second, other in seconds.items():
            if not _is_pair(claim, first, second, has_tasks=has_tasks):
                continue
            pairs = _task_pairs(own, other, has_tasks=has_tasks)
            found = [one for a, b in pairs if (one := _difference(claim, a, b, baselines, paired_error)) is not None]
            if not has_tasks:
                yield from found
            yield from _suite_means(found, claim.exceptions)


def _selected(scores: Sequence[ClaimScore], selection: Selection) -> dict[Subject, list[ClaimScore]]:
    found: dict[Subject, list[ClaimScore]] = {}
    for score in scores:
        if all(one.accepts(_field(score, one.field)) for one in selection):
            found.setdefault(score.subject, []).append(score)
    return found


def _field(score: ClaimScore, field: Field) -> str | float | None:
    if field is Field.TASK:
        return score.task
    return score.suite if field is Field.SUITE else score.subject.value(field)


def _baselines(scores: Sequence[ClaimScore]) -> Mapping[tuple[str, str, str], ClaimScore]:
    """Return the unquantized scores by source, model and task."""
    found: dict[tuple[str, str, str], ClaimScore] = {}
    for score in scores:
        if score.subject.method == "none":
            found.setdefault((score.subject.source, score.subject.model, score.task), score)
    return found


def _is_pair(claim: Claim, first: Subject, second: Subject, *, has_tasks: bool) -> bool:
    if first == second and not has_tasks:
        return False
    for field in claim.same:
        if first.value(field) != second.value(field):
            return False
    if claim.first_is_larger and not (first.parameters_b or 0) > (second.parameters_b or float("inf")):
        return False
    if claim.size_ratio_at_most is None:
        return True
    if not first.size or not second.size:
        return False
    return first.size / second.size <= claim.size_ratio_at_most


def _task_pairs(
    own: Sequence[ClaimScore], other: Sequence[ClaimScore], *, has_tasks: bool
) -> Iterator[tuple[ClaimScore, ClaimScore]]:
    """Yield the scores to compare: of the same task, or of the tasks that the selections name."""
    for first in own:
        for second in other:
            is_same = first.task == second.task and first.protocol == second.protocol
            if is_same or (has_tasks and first.suite == second.suite and first.task != second.task):
                yield first, second


def _difference(
    claim: Claim,
    first: ClaimScore,
    second: ClaimScore,
    baselines: Mapping[tuple[str, str, str], ClaimScore],
    paired_error: PairedError,
) -> Difference | None:
    value: float
    error: float | None
    if claim.value is Value.SCORE:
        value = first.value - second.value
        error = paired_error(first, second) or independent_error(first, second)
    else:
        changes = [_change(one, baselines) for one in (first, second)]
        if changes[0] is None or changes[1] is None:
            return None
        value, error = changes[0] - changes[1], None
    return Difference(
        first=first.subject,
        second=second.subject,
        suite=first.suite,
        task=first.task,
        value=value,
        error=error,
        is_marked=first.is_marked or second.is_marked,
    )


def _change(score: ClaimScore, baselines: Mapping[tuple[str, str, str], ClaimScore]) -> float | None:
    baseline = baselines.get((score.subject.source, score.subject.model, score.task))
    if baseline is None or baseline.protocol != score.protocol:
        return None
    return score.value - baseline.value


def _suite_means(found: Sequence[Difference], exceptions: Sequence[str]) -> Iterator[Difference]:
    for suite in dict.fromkeys(one.suite for one in found):
        parts = [one for one in found if one.suite == suite and one.task not in exceptions]
        if not parts:
            continue
        errors = [one.error for one in parts if one.error is not None]
        yield Difference(
            first=parts[0].first,
            second=parts[0].second,
            suite=suite,
            task="",
            value=sum(one.value for one in parts) / len(parts),
            error=sqrt(sum(error**2 for error in errors)) / len(parts) if len(errors) == len(parts) else None,
            is_marked=any(one.is_marked for one in parts),
        )


def _correlations(
    claim: Claim, own: Sequence[ClaimScore], baselines: Mapping[tuple[str, str, str], ClaimScore]
) -> Iterator[Difference]:
    """Yield the correlation of unquantized scores and changes for each suite of a variant."""
    for suite in dict.fromkeys(one.suite for one in own):
        points = []
        for one in own:
            change = _change(one, baselines)
            if one.suite == suite and one.task not in claim.exceptions and change is not None:
                points.append((one.value - change, change))
        subject = own[0].subject
        correlation = spearman(points) if len(points) >= MIN_TASKS else None
        if subject.method != "none" and correlation is not None:
            yield Difference(
                first=subject,
                second=subject,
                suite=suite,
                task="",
                value=correlation,
                error=None,
                is_marked=any(one.is_marked for one in own),
            )


def spearman(points: Sequence[tuple[float, float]]) -> float | None:
    """Return Spearman's rank correlation; None if one of the two is constant."""
    ranks = [_ranks([point[axis] for point in points]) for axis in (0, 1)]
    mean = (len(points) + 1) / 2
    centered = [[rank - mean for rank in axis] for axis in ranks]
    spread = sqrt(sum(one**2 for one in centered[0]) * sum(one**2 for one in centered[1]))
    return sum(a * b for a, b in zip(*centered, strict=True)) / spread if spread else None


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the ranks from 1; equal values share the mean of their ranks."""
    return [sum(other < one for other in values) + (sum(other == one for other in values) + 1) / 2 for one in values]
