"""Scores of tasks with several sampled texts per prompt: avg@n and pass@k, besides lm-eval's own scores.

lm-eval (0.4.13) scores the first text of a prompt, or a vote. Here each text is scored alone, by lm-eval's own filters
and metrics, and the texts of an item are then combined. Items are the unit of all errors and comparisons: texts of one
item are not independent.

- avg@n: the mean over items of the mean over the item's n texts.
- pass@k: the mean over items of `hpcq.evaluate.pass_at_k`, for metrics whose values are 0 or 1.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np
from lm_eval.filters.selection import MajorityVoteFilter, TakeFirstFilter, TakeKFilter
from numpy.typing import NDArray

from hpcq.core.frozen import dataclass
from hpcq.evaluate.item_scores import Metric, value_and_weight
from hpcq.evaluate.pass_at_k import pass_at_k
from hpcq.store import GroupShares, Score

_VOTES = (MajorityVoteFilter, TakeKFilter)


@dataclass(frozen=True, kw_only=True)
class RepeatScores:
    """Scores of one task with repeats.

    Attributes:
        scores: avg@n and pass@k of every metric that is a mean over items.
        values: Value and weight of each item, in the order of the data set, shape (items, 2), by metric and filter.
        origin: lm-eval's metric from which each of these metrics is made.
    """

    scores: Sequence[Score]
    values: Mapping[Metric, NDArray[np.float64]]
    origin: Mapping[Metric, Metric]


def average_name(metric: str, repeats: int) -> str:
    """Return the name of avg@n of a metric."""
    return f"{metric}_avg@{repeats}"


def repeat_scores(name: str, leaf: Any, means: Collection[Metric]) -> RepeatScores:
    """Return avg@n and pass@k of a task whose Instances have all their responses.

    Args:
        name: Name of the task.
        leaf: lm-eval's Task object, after lm-eval has scored it.
        means: Metrics of lm-eval that are means over items; others are left out.
    """
    repeats = max(len(instance.resps) for instance in leaf.instances)
    by_document: dict[int, list[Any]] = {}
    for instance in sorted(leaf.instances, key=lambda one: (one.doc_id, one.idx)):
        by_document.setdefault(instance.doc_id, []).append(instance)
    values: dict[Metric, NDArray[np.float64]] = {}
    origin: dict[Metric, Metric] = {}
    for filter_ in filter(_scores_one_text, leaf._filters):  # noqa: SLF001 (lm-eval has no public name for them)
        cells = _cells(leaf, filter_, by_document, repeats)
        for metric, found in cells.items():
            own = (metric, filter_.name)
            if own not in means:
                continue
            for made, column in _combined(metric, found):
                values[made, filter_.name] = column
                origin[made, filter_.name] = own
    scores = [_score(name, key, column) for key, column in values.items()]
    return RepeatScores(scores=scores, values=values, origin=origin)


def group_scores(
    shares: Sequence[GroupShares], leaves: Mapping[str, RepeatScores], items: Mapping[str, int]
) -> Iterator[tuple[Score, GroupShares]]:
    """Yield avg@n and pass@k of groups: weighted sums over their tasks, with the weights of the group's own score.

    Args:
        shares: Weight of each task in the groups' own scores.
        leaves: Scores of the tasks.
        items: Number of items of each task.
    """
    for group in shares:
        members = [leaves[task] for task in group.shares if task in leaves]
        if len(members) != len(group.shares):
            continue
        own = (group.metric, group.filter)
        for metric, filter_ in (key for key, origin in members[0].origin.items() if origin == own):
            found = [
                next((one for one in leaves[task].scores if (one.metric, one.filter) == (metric, filter_)), None)
                for task in group.shares
            ]
            scores = [one for one in found if one is not None]
            if len(scores) != len(found):
                continue
            weights = list(group.shares.values())
            variances = [
                (weight * one.stderr) ** 2
                for weight, one in zip(weights, scores, strict=True)
                if one.stderr is not None
            ]
            score = Score(
                task=group.group,
                metric=metric,
                filter=filter_,
                value=sum(weight * one.value for weight, one in zip(weights, scores, strict=True)),
                stderr=sqrt(sum(variances)) if len(variances) == len(scores) else None,
                n=sum(items[task] for task in group.shares),
            )
            yield score, GroupShares(group=group.group, metric=metric, filter=filter_, shares=group.shares)


def pass_at(k: int, right: NDArray[np.float64], repeats: int) -> NDArray[np.float64]:
    """Return pass@k of each item.

    Args:
        k: Number of texts, at most `repeats`.
        right: Number of right texts of each item, shape (items,).
        repeats: Number of texts of each item.
    """
    return np.array([pass_at_k(repeats, int(count), k) for count in right], dtype=np.float64)


def _scores_one_text(ensemble: Any) -> bool:
    """Return whether a chain of filters scores the first text of a prompt; votes need all texts."""
    kinds = [getattr(one, "func", one) for one in ensemble.filters]
    return TakeFirstFilter in kinds and not any(kind in _VOTES for kind in kinds)


def _cells(
    leaf: Any, ensemble: Any, by_document: Mapping[int, Sequence[Any]], repeats: int
) -> dict[str, NDArray[np.float64]]:
    """Return value and weight of each item and text, shape (items, texts, 2), by metric."""
    columns: list[list[dict[str, Any]]] = []
    for repeat in range(repeats):
        single = {number: [_with_text(one, repeat) for one in own] for number, own in by_document.items()}
        ensemble.apply([one for own in single.values() for one in own])
        columns.append(
            [
                leaf.process_results(own[0].doc, [one.filtered_resps[ensemble.name] for one in own])
                for own in single.values()
            ]
        )
    found: dict[str, NDArray[np.float64]] = {}
    for metric in columns[0][0]:
        cells = [[value_and_weight(row.get(metric)) for row in column] for column in columns]
        if all(cell is not None for column in cells for cell in column):
            found[metric] = np.array(cells, dtype=np.float64).transpose(1, 0, 2)
    return found


def _with_text(instance: Any, repeat: int) -> Any:
    one = copy.copy(instance)
    one.resps, one.filtered_resps = [instance.resps[repeat]], {}
    return one


def _combined(metric: str, cells: NDArray[np.float64]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield avg@n, and pass@k of a metric whose values are 0 or 1, each with value and weight per item."""
    repeats = cells.shape[1]
    yield average_name(metric, repeats), cells.mean(axis=1)
    values, weights = cells[..., 0], cells[..., 1]
    if not np.isin(values, (0.0, 1.0)).all() or not (weights == 1.0).all():
        return
    right = values.sum(axis=1)
    for k in _sizes(repeats):
        column = pass_at(k, right, repeats)
        yield f"{metric}_pass@{k}", np.stack([column, np.ones_like(column)], axis=1)


def _sizes(repeats: int) -> list[int]:
    """Return the k of pass@k: the powers of two from 2, and n. pass@1 is avg@n."""
    powers = [2**exponent for exponent in range(1, repeats.bit_length()) if 2**exponent < repeats]
    return [*powers, repeats]


def _score(name: str, key: Metric, cells: NDArray[np.float64]) -> Score:
    """Return the mean over items, with the standard error of independent items (lm-eval's `mean_stderr`)."""
    total, weight = cells.sum(axis=0)
    count = len(cells)
    has_equal_weights = bool((cells[:, 1] == cells[0, 1]).all())
    stderr = float(cells[:, 0].std(ddof=1) / cells[0, 1] / sqrt(count)) if count > 1 and has_equal_weights else None
    return Score(task=name, metric=key[0], filter=key[1], value=float(total / weight), stderr=stderr, n=count)
