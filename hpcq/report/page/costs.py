"""Quality and cost of each variant, and which variants no other one beats in both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hpcq.core.frozen import dataclass
from hpcq.report.line import Line
from hpcq.report.page.content import PageContent, shortened_name
from hpcq.report.rows import UNQUANTIZED_TOOL, Row

SECONDS_PER_HOUR = 3600
MAX_MODELS = 4
"""Models that a plot tells apart by the shape of their markers."""


@dataclass(frozen=True, kw_only=True)
class VariantCost:
    """Quality and cost of a variant.

    Attributes:
        name: Name of the variant.
        label: Its name next to a marker that shows the model.
        model: Its model.
        is_baseline: Whether it is unquantized.
        quality: Mean of its main scores, in percent.
        low: Quality of its baseline plus the lower end of the interval of the mean difference; None: not compared.
        high: The same with the upper end.
        gigabytes: Size of its weights; None: unknown.
        hours: Hours to quantize and to evaluate it, times the GPUs; None: unknown.
    """

    name: str
    label: str
    model: str
    is_baseline: bool
    quality: float
    low: float | None
    high: float | None
    gigabytes: float | None
    hours: float | None


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Variants whose qualities can be compared.

    Attributes:
        variants: The variants.
        tasks: Tasks over which qualities are means.
        left_out: Names of variants without a score of one of these tasks.
        has_gpus: Whether hours are GPU-hours; otherwise, they are hours of nodes without GPUs.
    """

    variants: Sequence[VariantCost]
    tasks: Sequence[str]
    left_out: Sequence[str]
    has_gpus: bool


def variant_costs(content: PageContent) -> Costs:
    """Return quality and cost of all variants that have scores of the same tasks."""
    scores: dict[Line, dict[str, Row]] = {line: {} for line in content.names}
    for (line, task), row in content.main.items():
        if row.value is not None and row.is_share and not row.lower_is_better:  # others have no mean with shares
            scores[line][task] = row
    tasks = _common_tasks(scores, content.tasks)
    shown = {line: own for line, own in scores.items() if tasks and own.keys() >= set(tasks)}
    gpus = _gpus(content)
    return Costs(
        variants=[_variant_cost(content, line, own, tasks, gpus) for line, own in shown.items()],
        tasks=tasks,
        left_out=[content.names[line] for line in scores if line not in shown],
        has_gpus=any(gpus.get(line, 0) for line in shown),
    )


def _common_tasks(scores: Mapping[Line, Mapping[str, Row]], order: Sequence[str]) -> list[str]:
    """Return the tasks of one variant that, times the variants with all of them, are the most scores."""
    sets = {frozenset(own) for own in scores.values()}

    def size(tasks: frozenset[str]) -> tuple[int, int]:
        return len(tasks) * sum(own.keys() >= tasks for own in scores.values()), len(tasks)

    best = max(sets, key=size, default=frozenset())
    return [task for task in order if task in best]


def _variant_cost(
    content: PageContent, line: Line, own: Mapping[str, Row], tasks: Sequence[str], gpus: Mapping[Line, int]
) -> VariantCost:
    first = own[tasks[0]]
    quality = 100 * _mean([own[task].value or 0.0 for task in tasks])
    suite = next(
        (one for one in content.suites if (one.run, one.variant) == line and set(one.tasks) == set(tasks)), None
    )
    seconds = (first.quantize_seconds or 0.0) + (first.evaluate_seconds or 0.0)
    return VariantCost(
        name=content.names[line],
        label=_label(content, line),
        model=first.model,
        is_baseline=first.tool == UNQUANTIZED_TOOL,
        quality=quality,
        low=quality + 100 * (suite.delta_low - suite.delta) if suite else None,
        high=quality + 100 * (suite.delta_high - suite.delta) if suite else None,
        gigabytes=first.checkpoint_bytes / 1e9 if first.checkpoint_bytes else None,
        hours=seconds * (gpus.get(line, 0) or 1) / SECONDS_PER_HOUR if first.evaluate_seconds else None,
    )


def _label(content: PageContent, line: Line) -> str:
    models = {row.model for row in content.rows}
    is_scheme_enough = len(models) <= MAX_MODELS and len(content.evidence.runs) <= 1
    return shortened_name(content.schemes[line]) if is_scheme_enough else content.label(line)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _gpus(content: PageContent) -> dict[Line, int]:
    """Return the GPUs of the units that evaluate each variant, 0 for units without GPUs, as planned."""
    found: dict[Line, int] = {}
    for run in content.evidence.runs:
        for unit in run.plan_document.get("units", ()):
            if unit.get("tasks"):
                line = (run.name, str(unit.get("variant")))
                found[line] = max(found.get(line, 0), _unit_gpus(unit))
    return found


def _unit_gpus(unit: Mapping[str, Any]) -> int:
    return int(unit.get("nodes") or 0) * int(unit.get("gpus_per_node") or 0)


def pareto_front(variants: Sequence[VariantCost], cost: Callable[[VariantCost], float | None]) -> list[VariantCost]:
    """Return the variants, by cost, that have a higher quality than all that cost less or the same."""
    priced = [(found, one) for one in variants if (found := cost(one)) is not None]
    front: list[VariantCost] = []
    for _, one in sorted(priced, key=lambda pair: (pair[0], -pair[1].quality)):
        if not front or one.quality > front[-1].quality:
            front.append(one)
    return front
