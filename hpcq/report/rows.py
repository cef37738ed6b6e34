"""The rows of a report: one a variant, task and metric, each beside its model's unquantized baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpcq.catalog.tasks import find_task
from hpcq.store import Results, Score, VariantScores

UNQUANTIZED = "none"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number.

    baseline_value, delta: the unquantized variant of the same model, and the difference from it. baseline_backend: the
    back end that computed that one. is_main: the metric that tables show for this task. checkpoint_bytes: weights on
    disk. quantize_seconds, evaluate_seconds: what the checkpoint and the responses took, shards added up. asked_tokens,
    computed_tokens: of the variant's log-likelihood requests, each in full, and what was computed of them.
    prefix_sharing: 'exact', or why prefixes were not shared. published_value, published_delta: what a published study
    gives, in percent, and the difference.
    """

    run: str
    variant: str
    model: str
    scheme: str
    tool: str
    backend: str
    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    n: int
    is_main: bool
    baseline_value: float | None = None
    baseline_backend: str | None = None
    delta: float | None = None
    checkpoint_bytes: int | None = None
    quantize_seconds: float | None = None
    evaluate_seconds: float | None = None
    asked_tokens: int | None = None
    computed_tokens: int | None = None
    prefix_sharing: str | None = None
    published_value: float | None = None
    published_delta: float | None = None
    published_source: str | None = None

    @property
    def is_across_backends(self) -> bool:
        """Whether the difference from the baseline is one of back ends, too."""
        return self.baseline_backend not in (None, self.backend)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


def make_rows(
    results: Results,
    *,
    order: Sequence[str] = (),
    task_order: Sequence[str] = (),
) -> list[Row]:
    """Every score as a row. `order`, `task_order`: of variants and tasks in the plan."""
    variants = sorted(results.variants, key=lambda item: _place(order, item.variant))
    rows = [
        _row(results.run, variant, score)
        for variant in variants
        for score in sorted(
            variant.scores, key=lambda score: (_place(task_order, score.task), score.metric, score.filter)
        )
    ]
    return _with_baselines(rows)


def _place(order: Sequence[str], name: str) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order), name)


def _row(run: str, variant: VariantScores, score: Score) -> Row:
    facts = variant.provenance
    task = find_task(score.task)
    return Row(
        run=run,
        variant=variant.variant,
        model=str(facts["model"]),
        scheme=str(facts["scheme"]),
        tool=str(facts["tool"]),
        backend=str(facts["backend"]),
        task=score.task,
        metric=score.metric,
        filter=score.filter,
        value=score.value,
        stderr=score.stderr,
        n=score.n,
        is_main=task is not None and (score.metric, score.filter) == (task.metric, task.filter),
        checkpoint_bytes=int(facts["checkpoint_bytes"]) if "checkpoint_bytes" in facts else None,
        quantize_seconds=float(facts["quantize_seconds"]) if "quantize_seconds" in facts else None,
        evaluate_seconds=float(facts["evaluate_seconds"]),
        asked_tokens=int(facts["asked_tokens"]) if "asked_tokens" in facts else None,
        computed_tokens=int(facts["computed_tokens"]) if "computed_tokens" in facts else None,
        prefix_sharing=str(facts.get("prefix_sharing") or "") or None,
    )


def _with_baselines(rows: Sequence[Row]) -> list[Row]:
    baselines: dict[tuple[str, str, str, str], Row] = {}
    for row in rows:
        if row.tool == UNQUANTIZED:
            baselines.setdefault((row.model, row.task, row.metric, row.filter), row)
    compared = []
    for row in rows:
        baseline = baselines.get((row.model, row.task, row.metric, row.filter))
        if baseline is None or baseline is row:
            compared.append(row)
        else:
            compared.append(
                dataclasses.replace(
                    row,
                    baseline_value=baseline.value,
                    baseline_backend=baseline.backend,
                    delta=row.value - baseline.value,
                )
            )
    return compared
