"""Intervals of scores, paired comparisons with the baseline, and verdicts: from the items in `results.h5`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from hpcq.catalog.tasks import find_task
from hpcq.core.frozen import dataclass
from hpcq.report.line import Line
from hpcq.report.paired import PairedResult, Verdict
from hpcq.report.row_items import DOCUMENT, PROMPT, RowItems
from hpcq.report.rows import Row
from hpcq.report.statistics.comparison import Comparison, Preparation, compare_all, prepare
from hpcq.report.statistics.intervals import score_interval
from hpcq.report.statistics.item_scores import ItemScores
from hpcq.report.statistics.shared_items import NO_CORRELATIONS, Correlations, ItemChanges, SharedItems
from hpcq.report.statistics.suite import compare_suite
from hpcq.report.statistics.verdict import holm, judge


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """Mean difference of a variant over the main scores of its tasks.

    Attributes:
        run: Name of the run.
        variant: Id of the variant.
        tasks: The tasks.
        delta: Mean difference from the baseline.
        delta_low: Lower end of its 95 % interval.
        delta_high: Upper end.
        p_value: Two-sided p-value of the hypothesis that it is 0.
        margin: Largest difference that counts as equivalent.
        verdict: What it shows.
    """

    run: str
    variant: str
    tasks: tuple[str, ...]
    delta: float
    delta_low: float
    delta_high: float
    p_value: float
    margin: float
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class ComparedScores:
    """Rows with their comparisons, and the mean differences of the variants.

    Attributes:
        rows: The rows.
        suites: Mean differences of the variants.
        correlations: By run and variant: correlations of the differences of tasks with the same items.
    """

    rows: Sequence[Row]
    suites: Sequence[SuiteResult]
    correlations: Mapping[Line, Correlations]


def add_comparisons(rows: Sequence[Row], items: RowItems, *, margin: float) -> ComparedScores:
    """Compare each row with its baseline on the same items.

    A row stays as it is if its score is not a mean over items, if it is not a share, or a share of which less is better
    (verdicts and margins are about losses in percentage points), or if an earlier version merged it.

    Args:
        rows: Rows with their baselines.
        items: Reads the items of the rows.
        margin: Largest difference that counts as equivalent, in the unit of the scores.
    """
    prepared: dict[int, Preparation] = {}
    shared = SharedItems()
    found: list[Row] = []
    for at, row in enumerate(rows):
        metric = (row.metric, row.filter)
        is_compared = row.value is not None and row.is_share and not row.lower_is_better
        own = None if not is_compared else items.find(row.run, row.variant, row.task, metric)
        interval = score_interval(own) if own else None
        found.append(dataclasses.replace(row, low=interval.low, high=interval.high) if interval else row)
        if own and row.baseline_variant is not None and row.delta is not None:
            other = items.find(row.baseline_run or row.run, row.baseline_variant, row.task, metric)
            preparation = prepare(own, other) if other else None
            if preparation and other:
                prepared[at] = preparation
                if row.is_main:
                    shared.add((row.run, row.variant), _changes(row.task, own, other))
    comparisons = dict(zip(prepared, compare_all([*prepared.values()]), strict=True))
    main = [at for at in comparisons if rows[at].is_main]
    adjusted = dict(zip(main, holm([comparisons[at].p_value for at in main]), strict=True))
    for at, comparison in comparisons.items():
        found[at] = dataclasses.replace(found[at], paired=_paired_result(comparison, adjusted.get(at), margin))
    correlations = shared.correlations()
    suites = _suites(rows, {at: comparisons[at] for at in main}, correlations, margin)
    return ComparedScores(rows=found, suites=suites, correlations=correlations)


def _changes(task: str, own: ItemScores, baseline: ItemScores) -> ItemChanges:
    return ItemChanges(
        task=task,
        documents=_documents(task),
        doc_id=own.keys[DOCUMENT],
        prompts=own.keys[PROMPT],
        influences=own.influences - baseline.influences,
    )


def _documents(task: str) -> str:
    """Return the name of a task's documents: tasks of one folder, with the same data sets and as many documents."""
    info = find_task(task)
    return f"{info.folder} {info.datasets} {info.documents}" if info and info.datasets and not info.is_group else ""


def _paired_result(comparison: Comparison, adjusted_p: float | None, margin: float) -> PairedResult:
    recovery = comparison.recovery_interval
    p_value = comparison.p_value if adjusted_p is None else adjusted_p
    return PairedResult(
        delta_low=comparison.interval.low,
        delta_high=comparison.interval.high,
        delta_stderr=comparison.error,
        equivalence_low=comparison.equivalence_interval.low,
        equivalence_high=comparison.equivalence_interval.high,
        p_value=comparison.p_value,
        adjusted_p_value=adjusted_p,
        method=str(comparison.method),
        gained=comparison.gained,
        lost=comparison.lost,
        recovery=comparison.recovery,
        recovery_low=recovery.low if recovery else None,
        recovery_high=recovery.high if recovery else None,
        detectable=comparison.detectable,
        margin=margin,
        verdict=_verdict(comparison, p_value, margin),
    )


def _verdict(comparison: Comparison, p_value: float, margin: float) -> Verdict:
    """Return the verdict; items that neither model answers correctly show nothing."""
    if comparison.recovery is None and not comparison.difference:
        return Verdict.CANNOT_TELL
    return judge(comparison.difference, comparison.equivalence_interval, p_value, margin)


def _suites(
    rows: Sequence[Row],
    comparisons: Mapping[int, Comparison],
    correlations: Mapping[Line, Correlations],
    margin: float,
) -> list[SuiteResult]:
    """Return the mean differences of variants with several compared tasks."""
    members: dict[Line, list[int]] = {}
    for at in comparisons:
        members.setdefault((rows[at].run, rows[at].variant), []).append(at)
    several = {line: own for line, own in members.items() if len(own) > 1}
    compared = [
        compare_suite({rows[at].task: comparisons[at] for at in own}, correlations.get(line, NO_CORRELATIONS))
        for line, own in several.items()
    ]
    adjusted = holm([one.p_value for one in compared])
    return [
        SuiteResult(
            run=run,
            variant=variant,
            tasks=tuple(rows[at].task for at in own),
            delta=one.difference,
            delta_low=one.interval.low,
            delta_high=one.interval.high,
            p_value=one.p_value,
            margin=margin,
            verdict=judge(one.difference, one.equivalence_interval, p_value, margin),
        )
        for ((run, variant), own), one, p_value in zip(several.items(), compared, adjusted, strict=True)
    ]
