"""Verdicts on claims, from counts, a sign test over models, and intervals of the mean difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import comb, sqrt
from statistics import NormalDist, fmean, stdev

from hpcq.core.frozen import dataclass
from hpcq.report.claims.claim import Claim, ClaimVerdict, Direction
from hpcq.report.claims.claim_scores import ClaimScore
from hpcq.report.claims.pairs import Difference, PairedError, find_differences, independent_error

SIGNIFICANCE = 0.05
MIN_MODELS = 6
"""Models from which a sign test can be significant at 5 %: 2 * 0.5**6 = 0.03."""


@dataclass(frozen=True, kw_only=True)
class ClaimLine:
    """What the scores of a suite, or of one task, show about a claim.

    Attributes:
        suite: The suite.
        task: The task; '': the mean over the suite's tasks.
        is_exception: The claim excepts this task.
        pairs: Number of pairs.
        agreeing: Pairs that agree with the claim.
        opposing: Pairs that do not. The others are exactly at the margin.
        models: Number of models.
        agreeing_models: Models whose mean over their pairs agrees.
        mean: Mean difference over the models, in points; or mean correlation.
        low: Lower end of its 95 % interval; None: unknown.
        high: Upper end.
        p_value: Two-sided p-value of the sign test over models, or, of fewer models, of the mean; None: unknown.
        cross_backend: Pairs whose sides were evaluated by different back ends.
        marked: Pairs with a warning about one of their scores (`hpcq.verify.marks`).
        verdict: The verdict.
    """

    suite: str
    task: str
    is_exception: bool
    pairs: int
    agreeing: int
    opposing: int
    models: int
    agreeing_models: int
    mean: float
    low: float | None
    high: float | None
    p_value: float | None
    cross_backend: int
    marked: int
    verdict: ClaimVerdict


@dataclass(frozen=True, kw_only=True)
class ClaimResult:
    """A claim and what the scores show.

    Attributes:
        claim: The claim.
        lines: One per suite and, after it, one per task of the suite.
        verdict: Holds: it does in all suites. Fails: in one, at least. Cannot tell: otherwise, or without a pair.
    """

    claim: Claim
    lines: Sequence[ClaimLine]
    verdict: ClaimVerdict


def evaluate_claims(
    claims: Sequence[Claim], scores: Sequence[ClaimScore], paired_error: PairedError = independent_error
) -> list[ClaimResult]:
    """Return a verdict for each claim.

    Args:
        claims: The claims.
        scores: All scores.
        paired_error: Standard error of a difference, from the items.
    """
    return [_evaluate(claim, scores, paired_error) for claim in claims]


def _evaluate(claim: Claim, scores: Sequence[ClaimScore], paired_error: PairedError) -> ClaimResult:
    groups: dict[tuple[str, str], list[Difference]] = {}
    for one in find_differences(claim, scores, paired_error):
        groups.setdefault((one.suite, one.task), []).append(one)
    suites = dict.fromkeys(suite for suite, _ in groups)
    keys = [key for suite in suites for key in sorted(groups, key=lambda key: bool(key[1])) if key[0] == suite]
    lines = [_line(claim, key, groups[key]) for key in keys]
    verdicts = {line.verdict for line in lines if not line.task}
    if ClaimVerdict.FAILS in verdicts:
        verdict = ClaimVerdict.FAILS
    else:
        verdict = ClaimVerdict.HOLDS if verdicts == {ClaimVerdict.HOLDS} else ClaimVerdict.CANNOT_TELL
    return ClaimResult(claim=claim, lines=lines, verdict=verdict)


@dataclass(frozen=True, kw_only=True)
class _Unit:
    """Mean over the pairs of one model: pairs of a model share scores, so they are not independent."""

    value: float
    error: float | None


def _units(differences: Sequence[Difference]) -> list[_Unit]:
    models: dict[tuple[str, str], list[Difference]] = {}
    for one in differences:
        models.setdefault((one.first.source, one.first.model), []).append(one)
    units = []
    for own in models.values():
        errors = [one.error for one in own if one.error is not None]
        error = fmean(errors) if len(errors) == len(own) else None
        units.append(_Unit(value=fmean(one.value for one in own), error=error))
    return units


def _line(claim: Claim, key: tuple[str, str], differences: Sequence[Difference]) -> ClaimLine:
    units = _units(differences)
    agree = [claim.holds_for(one.value) for one in differences]
    mean, interval = fmean(unit.value for unit in units), _interval(units, SIGNIFICANCE)
    verdict, p_value = _verdict(claim, units, differences)
    return ClaimLine(
        suite=key[0],
        task=key[1],
        is_exception=key[1] in claim.exceptions,
        pairs=len(differences),
        agreeing=agree.count(True),
        opposing=agree.count(False),
        models=len(units),
        agreeing_models=sum(bool(claim.holds_for(unit.value)) for unit in units),
        mean=mean,
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
        p_value=p_value,
        cross_backend=sum(one.is_cross_backend for one in differences),
        marked=sum(one.is_marked for one in differences),
        verdict=verdict,
    )


def _interval(units: Sequence[_Unit], alpha: float) -> tuple[float, float] | None:
    """Return the interval of the mean: from the scatter of the models (t), or of few from the errors of the scores."""
    mean = fmean(unit.value for unit in units)
    if len(units) >= MIN_MODELS:
        from hpcq.report.statistics.distributions import student_quantile

        half = student_quantile(len(units) - 1, 1 - alpha / 2) * stdev(unit.value for unit in units) / sqrt(len(units))
    else:
        error = _mean_error(units)
        if error is None:
            return None
        half = NormalDist().inv_cdf(1 - alpha / 2) * error
    return mean - half, mean + half


def _mean_error(units: Sequence[_Unit]) -> float | None:
    errors = [unit.error for unit in units if unit.error is not None]
    return sqrt(sum(error**2 for error in errors)) / len(units) if len(errors) == len(units) else None


def _verdict(
    claim: Claim, units: Sequence[_Unit], differences: Sequence[Difference]
) -> tuple[ClaimVerdict, float | None]:
    if claim.direction is Direction.EQUIVALENT:
        return _equivalence(claim, units), None
    if claim.direction is Direction.DIFFERENT:
        return _difference(claim, differences)
    beyond = [claim.signed(unit.value) for unit in units]
    if len(units) >= MIN_MODELS:
        agreeing, opposing = sum(one > 0 for one in beyond), sum(one < 0 for one in beyond)
        p_value, direction = sign_test(agreeing, opposing), float(agreeing - opposing)
    else:
        error = _mean_error(units)
        if not error:
            return ClaimVerdict.CANNOT_TELL, None
        direction = fmean(beyond)
        p_value = _two_sided(direction / error)
    if p_value >= SIGNIFICANCE:
        return ClaimVerdict.CANNOT_TELL, p_value
    return ClaimVerdict.HOLDS if direction > 0 else ClaimVerdict.FAILS, p_value


def sign_test(agreeing: int, opposing: int) -> float:
    """Return the two-sided p-value of the exact sign test."""
    n = agreeing + opposing
    return min(1.0, 2 * float(sum(comb(n, k) for k in range(min(agreeing, opposing) + 1))) / float(2**n))


def _two_sided(z: float) -> float:
    return 2 * NormalDist().cdf(-abs(z))


def _equivalence(claim: Claim, units: Sequence[_Unit]) -> ClaimVerdict:
    """Two one-sided tests at 5 %: the 90 % interval is within the margin. Fails: the 95 % interval is beyond it."""
    narrow, wide = _interval(units, 2 * SIGNIFICANCE), _interval(units, SIGNIFICANCE)
    if narrow is None or wide is None:
        return ClaimVerdict.CANNOT_TELL
    if -claim.margin < narrow[0] and narrow[1] < claim.margin:
        return ClaimVerdict.HOLDS
    return ClaimVerdict.FAILS if wide[0] > claim.margin or wide[1] < -claim.margin else ClaimVerdict.CANNOT_TELL


def _difference(claim: Claim, differences: Sequence[Difference]) -> tuple[ClaimVerdict, float | None]:
    """Holds if one pair differs by more than the margin (Bonferroni); fails if the intervals of all are within it.

    With a margin of 0, no data can show that it fails.
    """
    errors = [one.error for one in differences if one.error]
    if len(errors) < len(differences):
        return ClaimVerdict.CANNOT_TELL, None
    beyond = [max(0.0, abs(one.value) - claim.margin) for one in differences]
    smallest = min(_two_sided(value / error) for value, error in zip(beyond, errors, strict=True))
    p_value = min(1.0, len(differences) * smallest)
    if p_value < SIGNIFICANCE:
        return ClaimVerdict.HOLDS, p_value
    quantile = NormalDist().inv_cdf(1 - SIGNIFICANCE)
    within = all(
        abs(one.value) + quantile * error < claim.margin for one, error in zip(differences, errors, strict=True)
    )
    return ClaimVerdict.FAILS if within else ClaimVerdict.CANNOT_TELL, p_value


def suite_lines(result: ClaimResult) -> Iterator[ClaimLine]:
    """Yield the lines that decide the verdict."""
    yield from (line for line in result.lines if not line.task)
