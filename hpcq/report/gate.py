"""Gate: whether variants lose no more than a policy permits, from their paired comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from math import ceil, erfc, inf, sqrt
from types import MappingProxyType
from typing import Any

from hpcq.catalog.tasks import find_suite
from hpcq.core.errors import KeyedInputError
from hpcq.core.frozen import dataclass
from hpcq.report.line import Line
from hpcq.report.rows import UNQUANTIZED_TOOL, Row
from hpcq.report.statistics.detectable import SIGNIFICANCE, detectable_difference
from hpcq.report.statistics.intervals import Interval
from hpcq.report.statistics.shared_items import NO_CORRELATIONS, Correlations
from hpcq.report.statistics.suite import compare_suite
from hpcq.report.statistics.verdict import holm


class GateVerdict(StrEnum):
    """What a gate says.

    Attributes:
        PASS: The loss is at most the margin (one-sided test at 5 %).
        FAIL: The loss is above the margin (one-sided test at 5 %, corrected for the number of checks).
        CANNOT_TELL: The items show neither, cannot show a loss as small as the margin, or there is no comparison.
    """

    PASS = "PASS"  # noqa: S105 (not a password)
    FAIL = "FAIL"
    CANNOT_TELL = "CANNOT TELL"


@dataclass(frozen=True, kw_only=True)
class GatePolicy:
    """Largest losses that a gate permits, in percentage points.

    Attributes:
        name: The policy's file, as the user gave it.
        variants: Shell patterns for schemes, ids of variants or names of lines; empty: all quantized variants.
        margin_points: Of each task; None: only the tasks in `tasks`.
        mean_margin_points: Of the mean of all tasks of a variant.
        require_power: Whether the items must be able to show a loss as small as the margin.
        tasks: By task.
        suites: Of the mean of the tasks of a suite.
    """

    name: str
    variants: tuple[str, ...] = ()
    margin_points: float | None = None
    mean_margin_points: float | None = None
    require_power: bool = True
    tasks: Mapping[str, float] = field(default_factory=dict)
    suites: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GateCheck:
    """One variant on one task, or on the mean of several.

    Attributes:
        run: Name of the run.
        variant: Id of the variant.
        name: Name of the variant in tables.
        subject: The task, or 'mean of 6 tasks (suite)'.
        tasks: The tasks.
        margin: Largest permitted loss, in the unit of the score.
        verdict: What was found.
        reason: Why, if it cannot tell; else ''.
        n: Number of items; None for a mean, or without comparison.
        delta: Difference from the baseline; None without comparison.
        delta_low: Lower end of its 90 % interval.
        delta_high: Upper end.
        detectable: Smallest difference that is found with a probability of 80 %.
        p_value: One-sided p-value of a loss of at most the margin.
        adjusted_p_value: The same after Holm's correction for all checks.
        marks: Warnings about the score.
    """

    run: str
    variant: str
    name: str
    subject: str
    tasks: tuple[str, ...]
    margin: float
    verdict: GateVerdict = GateVerdict.CANNOT_TELL
    reason: str = ""
    n: int | None = None
    delta: float | None = None
    delta_low: float | None = None
    delta_high: float | None = None
    detectable: float | None = None
    p_value: float | None = None
    adjusted_p_value: float | None = None
    marks: tuple[str, ...] = ()

    def measured(self, *, difference: float, error: float, interval: Interval, n: int | None) -> GateCheck:
        """Return the check with its numbers.

        Args:
            difference: Difference from the baseline.
            error: Its standard error.
            interval: Its 90 % interval.
            n: Number of items; None for a mean.
        """
        scaled = (difference + self.margin) / error if error else inf * (difference + self.margin or 1.0)
        return replace(
            self,
            n=n,
            delta=difference,
            delta_low=interval.low,
            delta_high=interval.high,
            detectable=detectable_difference(error),
            p_value=erfc(-scaled / sqrt(2)) / 2,  # of the normal distribution
        )


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """Result of a gate.

    Attributes:
        policy: The policy.
        checks: All checks.
    """

    policy: GatePolicy
    checks: tuple[GateCheck, ...]

    @property
    def verdict(self) -> GateVerdict:
        """FAIL if a check fails, else CANNOT TELL if one cannot tell."""
        found = {check.verdict for check in self.checks}
        return next(one for one in (GateVerdict.FAIL, GateVerdict.CANNOT_TELL, GateVerdict.PASS) if one in found)

    @property
    def summary(self) -> str:
        """One sentence."""
        return f"{self.verdict} ({self.policy.name}): {_finding(self)}."

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "policy": asdict(self.policy),
            "verdict": str(self.verdict),
            "summary": self.summary,
            "checks": [{**asdict(check), "verdict": str(check.verdict)} for check in self.checks],
        }


def evaluate_gate(
    rows: Sequence[Row],
    names: Mapping[Line, str],
    policy: GatePolicy,
    correlations: Mapping[Line, Correlations] = MappingProxyType({}),
) -> GateResult:
    """Compare the losses of the selected variants with the margins of the policy.

    PASS of all checks needs no correction for their number: it is wrong only if the check with the largest loss is.

    Args:
        rows: All rows of the report, with their comparisons.
        names: Name of each line of the main table.
        policy: The policy.
        correlations: By run and variant: correlations of the differences of tasks with the same items.

    Raises:
        KeyedInputError: The policy selects no variant, or nothing to check.
    """
    lines: dict[Line, dict[str, Row]] = {}
    for row in rows:
        if row.is_main and row.tool != UNQUANTIZED_TOOL:
            lines.setdefault((row.run, row.variant), {})[row.task] = row
    _check_patterns(lines, names, policy)
    checks = [
        check
        for line, own in lines.items()
        if not policy.variants or any(_selects(pattern, line, own, names) for pattern in policy.variants)
        for check in _checks(line, names[line], own, policy, correlations.get(line, NO_CORRELATIONS))
    ]
    if not checks:
        raise KeyedInputError("variants", "the report has no quantized variant to check.")
    return GateResult(policy=policy, checks=tuple(judge_checks(checks, require_power=policy.require_power)))


def _check_patterns(lines: Mapping[Line, Mapping[str, Row]], names: Mapping[Line, str], policy: GatePolicy) -> None:
    for pattern in policy.variants:
        if not any(_selects(pattern, line, own, names) for line, own in lines.items()):
            known = ", ".join(dict.fromkeys(names[line] for line in lines)) or "none"
            raise KeyedInputError(
                "variants", f"'{pattern}' selects no quantized variant of the report; it has {known}."
            )


def _selects(pattern: str, line: Line, own: Mapping[str, Row], names: Mapping[Line, str]) -> bool:
    scheme = next(iter(own.values())).scheme
    return any(pattern == name or fnmatchcase(name, pattern) for name in (scheme, line[1], names[line]))


def _checks(
    line: Line, name: str, own: Mapping[str, Row], policy: GatePolicy, correlations: Correlations
) -> Iterator[GateCheck]:
    """Yield the checks of a variant, with their numbers and without verdicts."""
    run, variant = line
    for task in dict.fromkeys((*own, *policy.tasks)):
        points = policy.tasks.get(task, policy.margin_points)
        if points is not None:
            check = GateCheck(
                run=run, variant=variant, name=name, subject=task, tasks=(task,), margin=points / 100
            )  # fmt: skip
            yield _with_numbers(check, own, correlations)
    means = {suite: _suite_tasks(suite) for suite in policy.suites}
    margins = dict(policy.suites)
    if policy.mean_margin_points is not None:
        means[""], margins[""] = tuple(own), policy.mean_margin_points
    for suite, tasks in means.items():
        subject = f"mean of {len(tasks)} tasks{f' ({suite})' if suite else ''}"
        check = GateCheck(
            run=run, variant=variant, name=name, subject=subject, tasks=tasks, margin=margins[suite] / 100
        )  # fmt: skip
        yield _with_numbers(check, own, correlations)


def _suite_tasks(name: str) -> tuple[str, ...]:
    suite = find_suite(name)
    return tuple(task for task, _ in suite.tasks) if suite else ()


@dataclass(frozen=True, kw_only=True)
class _Difference:
    """Difference of one task, and its standard error."""

    difference: float
    error: float


def _with_numbers(check: GateCheck, own: Mapping[str, Row], correlations: Correlations) -> GateCheck:
    """Add the difference, or the reason why there is none."""
    problems = [problem for task in check.tasks if (problem := _problem(task, own.get(task)))]
    rows = [own[task] for task in check.tasks if task in own]
    check = replace(check, marks=tuple(dict.fromkeys(sentence for row in rows for sentence in _warnings(row))))
    if problems:
        return replace(check, reason="; ".join(problems))
    differences = {
        row.task: _Difference(difference=row.delta, error=row.paired.delta_stderr)
        for row in rows
        if row.paired and row.delta is not None
    }
    if len(rows) == 1 and rows[0].paired:
        own_interval = Interval(low=rows[0].paired.equivalence_low, high=rows[0].paired.equivalence_high)
        only = differences[rows[0].task]
        return check.measured(difference=only.difference, error=only.error, interval=own_interval, n=rows[0].n)
    mean = compare_suite(differences, correlations)
    return check.measured(difference=mean.difference, error=mean.error, interval=mean.equivalence_interval, n=None)


def _problem(task: str, row: Row | None) -> str:
    """Return why a task has no comparison; '' if it has one."""
    if row is None:
        return f"{task} is not in the run"
    if row.value is None:
        withheld = [mark.sentence for mark in row.marks if mark.kind.withholds_score]
        why = row.failure.sentence if row.failure else "; ".join(withheld) or "responses are missing"
        return f"{task} has no score: {why}".rstrip(".")
    if row.paired is None:
        why = row.baseline_problem or "it has no score of the unquantized model on the same items"
        return f"{task} is not compared: {why}".rstrip(".")
    return ""


def _warnings(row: Row) -> Iterator[str]:
    yield from (mark.sentence for mark in row.marks)
    if row.is_cross_backend:
        yield f"evaluated by {row.backend}, the baseline by {row.baseline_backend}"


def judge_checks(checks: Sequence[GateCheck], *, require_power: bool) -> Iterator[GateCheck]:
    """Yield the checks with their verdicts.

    Args:
        checks: All checks of the gate, with their numbers.
        require_power: As in `GatePolicy`.
    """
    tested = [check.p_value for check in checks if check.p_value is not None]
    adjusted = iter(holm(tested))
    for check in checks:
        if check.p_value is None:
            yield check
            continue
        check = replace(check, adjusted_p_value=next(adjusted))  # noqa: PLW2901 (the same check)
        verdict, reason = _verdict(check, require_power=require_power)
        yield replace(check, verdict=verdict, reason=reason)


def _verdict(check: GateCheck, *, require_power: bool) -> tuple[GateVerdict, str]:
    low, high, detectable = check.delta_low or 0.0, check.delta_high or 0.0, check.detectable or 0.0
    if high < -check.margin and (check.adjusted_p_value or 0.0) < SIGNIFICANCE:
        return GateVerdict.FAIL, ""
    is_underpowered = require_power and detectable > check.margin
    if low > -check.margin and not is_underpowered:
        return GateVerdict.PASS, ""
    if is_underpowered:
        needed = "" if check.n is None else f"; about {ceil(check.n * (detectable / check.margin) ** 2)} are needed"
        return GateVerdict.CANNOT_TELL, f"the items show differences from {100 * detectable:.1f} points{needed}"
    return GateVerdict.CANNOT_TELL, "the interval of the difference contains the margin"


def _finding(result: GateResult) -> str:
    """Return what was found: the failed checks, else the first that cannot tell, else that all pass."""
    total = len(result.checks)
    failed = [check for check in result.checks if check.verdict is GateVerdict.FAIL]
    unclear = [check for check in result.checks if check.verdict is GateVerdict.CANNOT_TELL]
    if failed:
        worst = min(failed, key=lambda check: (check.delta or 0.0) + check.margin)
        others = f", {len(unclear)} cannot tell" if unclear else ""
        return (
            f"{len(failed)} of {total} checks fail{others}; {worst.name} loses {-100 * (worst.delta or 0.0):.1f} points"
            f" on {worst.subject}, margin {100 * worst.margin:g}"
        )
    if unclear:
        first = unclear[0]
        return f"{len(unclear)} of {total} checks cannot tell; {first.name} on {first.subject}: {first.reason}"
    variants = len({(check.run, check.variant) for check in result.checks})
    largest = max(check.margin for check in result.checks)
    loss = min((check.delta or 0.0) for check in result.checks)
    return (
        f"{variants} variant{'s' if variants > 1 else ''} lose{'' if variants > 1 else 's'} no more than the margins"
        f" (up to {100 * largest:g} points) in all {total} checks; the largest loss is"
        f" {max(0.0, -100 * loss):.1f} points"
    )
