"""Fidelity of a variant to its baseline on multiple-choice items, from stored log-likelihoods.

The distribution of an item is the softmax of the log-likelihoods of its choices. These measures tell how much a variant
differs from its baseline. They do not show whether it is better or worse: a small difference is not a verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hpcq.core.frozen import dataclass
from hpcq.report.line import Line
from hpcq.report.row_items import RowItems
from hpcq.report.rows import Row
from hpcq.report.statistics.bootstrap import Sample, bootstrap_t_of
from hpcq.report.statistics.intervals import CONFIDENCE, wilson_interval
from hpcq.report.statistics.item_scores import Floats
from hpcq.store import Columns, ResponseKind, TaskItems
from hpcq.store.item_scores import NO_TARGET


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over items and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ChoiceFidelity:
    """Fidelity of a variant on one task.

    Attributes:
        run: Name of the run.
        variant: Id of the variant.
        task: Name of the task, or of one task of a group.
        n: Number of items.
        divergence: Mean Kullback-Leibler divergence of the variant's distribution from the baseline's, in nats.
        agreement: Share of the items with the same most probable choice.
        gold_change: Mean change of the log-likelihood of the right choice, in nats.
        margin_change: Mean change of the margin, in nats: log-likelihood of the right choice minus that of the best
            other one.
    """

    run: str
    variant: str
    task: str
    n: int
    divergence: Estimate
    agreement: Estimate
    gold_change: Estimate
    margin_change: Estimate


@dataclass(frozen=True, kw_only=True, eq=False)
class _Choices:
    """Log-likelihoods of the choices of each item: shape (items, choices), padded with minus infinity."""

    loglikelihoods: Floats
    digests: NDArray[np.bytes_]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Compared:
    """Values of each item of a variant and task.

    Attributes:
        agreeing: Number of items with the same most probable choice.
        measures: Divergence, change of the right choice, and change of the margin; shape (3, items).
    """

    agreeing: int
    measures: Floats


def choice_fidelity(rows: Sequence[Row], items: RowItems) -> list[ChoiceFidelity]:
    """Return the fidelity of each variant that has a baseline, for each multiple-choice task with the same items.

    Args:
        rows: Rows with their baselines.
        items: Reads the items of the rows.
    """
    compared = {}
    baselines = _variants_by_baseline(rows)
    for (baseline_run, baseline), variants in baselines.items():
        tables = [(run, variant, table) for run, variant in variants for table in items.tables(run, variant).tasks]
        for task in dict.fromkeys(table.task for *_, table in tables):
            columns = items.results[baseline_run].columns(baseline, task)
            for run, variant, table in tables:
                if table.task == task and not np.any(table.target == NO_TARGET):
                    own = _choices(items.results[run].columns(variant, task), table)
                    other = _choices(columns, table)
                    if own and other and np.array_equal(own.digests, other.digests):
                        compared[run, variant, task] = _compare(table, own.loglikelihoods, other.loglikelihoods)
    means = _means([measure for one in compared.values() for measure in one.measures])
    fidelity = [_fidelity(name, one, next(means), next(means), next(means)) for name, one in compared.items()]
    order = {line: at for at, line in enumerate(dict.fromkeys((row.run, row.variant) for row in rows))}
    return sorted(fidelity, key=lambda one: order[one.run, one.variant])


def _variants_by_baseline(rows: Sequence[Row]) -> dict[Line, dict[Line, None]]:
    found: dict[Line, dict[Line, None]] = {}
    for row in rows:
        if row.baseline_variant is not None:
            found.setdefault((row.baseline_run or row.run, row.baseline_variant), {})[row.run, row.variant] = None
    return found


def _choices(columns: Columns | None, table: TaskItems) -> _Choices | None:
    """Return the choices of the table's items; None if requests are missing, or are not one per choice.

    For `acc_mutual_info`, lm-eval also requests each choice without its context.
    """
    has_others = any(metric == "acc_mutual_info" for metric, _ in table.values)
    if columns is None or has_others or np.any(columns.kind != ResponseKind.LOGLIKELIHOOD) or np.any(columns.repeat):
        return None
    items = np.searchsorted(table.doc_id, columns.doc_id)
    known = (items < len(table.doc_id)) & (table.doc_id[np.minimum(items, len(table.doc_id) - 1)] == columns.doc_id)
    items, indices, values = items[known], columns.request_index[known], columns.loglikelihood[known]
    counts = np.bincount(items, minlength=len(table.doc_id))
    width = int(counts.max(initial=0))
    found = np.full((len(table.doc_id), width), -np.inf)
    found[items, indices] = values
    digests = np.zeros(found.shape, dtype="S32")
    digests[items, indices] = columns.digest[known]
    is_complete = np.isfinite(found).sum(axis=1) == counts
    if not len(table.doc_id) or not is_complete.all() or (counts <= np.maximum(table.target, 1)).any():
        return None
    return _Choices(loglikelihoods=found, digests=digests)


def _compare(table: TaskItems, own: Floats, other: Floats) -> _Compared:
    items, gold = np.arange(len(own)), table.target
    return _Compared(
        agreeing=int(np.sum(own.argmax(axis=1) == other.argmax(axis=1))),
        measures=np.stack(
            (
                _divergence(other, own),
                own[items, gold] - other[items, gold],
                _margins(own, gold) - _margins(other, gold),
            )
        ),
    )


def _fidelity(
    name: tuple[str, str, str], one: _Compared, divergence: Estimate, gold_change: Estimate, margin_change: Estimate
) -> ChoiceFidelity:
    run, variant, task = name
    n = one.measures.shape[1]
    share = wilson_interval(one.agreeing, n)
    return ChoiceFidelity(
        run=run,
        variant=variant,
        task=task,
        n=n,
        divergence=_not_negative(divergence),
        agreement=Estimate(value=one.agreeing / n, low=share.low, high=share.high),
        gold_change=gold_change,
        margin_change=margin_change,
    )


def _not_negative(estimate: Estimate) -> Estimate:
    return replace(estimate, low=max(0.0, estimate.low))


def _divergence(baseline: Floats, variant: Floats) -> Floats:
    """Return KL(baseline || variant) of each item, in nats."""
    p, q = _log_softmax(baseline), _log_softmax(variant)
    with np.errstate(invalid="ignore"):  # padding: 0 * (-inf + inf)
        terms = np.where(np.isfinite(p), np.exp(p) * (p - q), 0.0)
    divergence: Floats = np.maximum(0.0, terms.sum(axis=1))
    return divergence


def _log_softmax(values: Floats) -> Floats:
    shifted = values - values.max(axis=1, keepdims=True)
    normalized: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalized


def _margins(values: Floats, gold: NDArray[np.int64]) -> Floats:
    items = np.arange(len(values))
    others = values.copy()
    others[items, gold] = -np.inf
    margins: Floats = values[items, gold] - others.max(axis=1)
    return margins


def mean_estimate(values: Floats) -> Estimate:
    """Return the mean of independent values with its bootstrap-t interval."""
    return next(_means([values]))


def _means(samples: Sequence[Floats]) -> Iterator[Estimate]:
    """Yield the mean of each sample with its interval."""
    means = [float(values.mean()) for values in samples]
    spreads = bootstrap_t_of(
        [
            Sample(influences=(values - mean) / len(values), strata=np.zeros(len(values), dtype=np.int64))
            for values, mean in zip(samples, means, strict=True)
        ]
    )
    for mean, spread in zip(means, spreads, strict=True):
        interval = spread.interval(mean, CONFIDENCE, spread.error)
        yield Estimate(value=mean, low=interval.low, high=interval.high)
