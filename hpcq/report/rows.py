"""Rows of a report: one per variant, task and metric, each with the baseline of its model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpcq.catalog.tasks import find_task
from hpcq.report.model_labels import ModelIdentity
from hpcq.store import Results, Score, VariantScores

UNQUANTIZED_TOOL = "none"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One score.

    Attributes:
        run: Name of the run.
        variant: Id of the variant.
        model: Id of the model.
        scheme: Name of the quantization scheme.
        tool: Quantization tool; 'none' for the unquantized baseline.
        backend: Backend that answered the requests.
        task: Name of the task.
        metric: Name of the metric.
        filter: lm-eval's filter of the responses.
        value: The score.
        stderr: Standard error of the score.
        n: Number of items.
        is_main: Whether tables show this metric for the task.
        baseline_value: Score of the unquantized variant of the same model.
        baseline_backend: Backend of the baseline.
        delta: `value - baseline_value`.
        checkpoint_bytes: Size of the weights on disk.
        quantize_seconds: Time to quantize the checkpoint.
        evaluate_seconds: Time to answer the requests, summed over shards.
        asked_tokens: Tokens of all log-likelihood requests of the variant, without prefix sharing.
        computed_tokens: Tokens computed for these requests.
        prefix_sharing: 'exact', or the reason why prefixes were not shared.
        published_value: Score in a published study, in percent.
        published_delta: `100 * value - published_value`.
        published_source: Name of that study.
        model_revision: Commit, branch or tag of the model on the hub; None if none was named.
        model_digest: SHA-256 of the model's files; None if it is unknown.
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
    model_revision: str | None = None
    model_digest: str | None = None

    @property
    def model_identity(self) -> ModelIdentity:
        """Identity of the model; rows of different models are never compared."""
        return ModelIdentity(id=self.model, revision=self.model_revision or "", digest=self.model_digest or "")

    @property
    def is_cross_backend(self) -> bool:
        """Whether another backend evaluated the baseline."""
        return self.baseline_backend not in (None, self.backend)

    def as_json(self) -> dict[str, Any]:
        """Return the row as plain JSON types."""
        return dataclasses.asdict(self)


def make_rows(
    results: Results,
    *,
    variant_order: Sequence[str] = (),
    task_order: Sequence[str] = (),
) -> list[Row]:
    """Return one row per score.

    Args:
        results: Merged results of a run.
        variant_order: Variants in the order of the plan.
        task_order: Tasks in the order of the plan.
    """
    variants = sorted(results.variants, key=lambda item: _rank(variant_order, item.variant))
    rows = [
        _row(results.run, variant, score)
        for variant in variants
        for score in sorted(
            variant.scores, key=lambda score: (_rank(task_order, score.task), score.metric, score.filter)
        )
    ]
    return _with_baselines(rows)


def _rank(order: Sequence[str], name: str) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order), name)


def _row(run: str, variant: VariantScores, score: Score) -> Row:
    provenance = variant.provenance
    task = find_task(score.task)
    return Row(
        run=run,
        variant=variant.variant,
        model=str(provenance["model"]),
        scheme=str(provenance["scheme"]),
        tool=str(provenance["tool"]),
        backend=str(provenance["backend"]),
        task=score.task,
        metric=score.metric,
        filter=score.filter,
        value=score.value,
        stderr=score.stderr,
        n=score.n,
        is_main=task is not None and (score.metric, score.filter) == (task.metric, task.filter),
        checkpoint_bytes=int(provenance["checkpoint_bytes"]) if "checkpoint_bytes" in provenance else None,
        quantize_seconds=float(provenance["quantize_seconds"]) if "quantize_seconds" in provenance else None,
        evaluate_seconds=float(provenance["evaluate_seconds"]),
        asked_tokens=int(provenance["asked_tokens"]) if "asked_tokens" in provenance else None,
        computed_tokens=int(provenance["computed_tokens"]) if "computed_tokens" in provenance else None,
        prefix_sharing=str(provenance.get("prefix_sharing") or "") or None,
        model_revision=str(provenance.get("model_revision") or "") or None,
        model_digest=str(provenance.get("model_digest") or "") or None,
    )


def _comparison_key(row: Row) -> tuple[ModelIdentity, str, str, str]:
    return row.model_identity, row.task, row.metric, row.filter


def _with_baselines(rows: Sequence[Row]) -> list[Row]:
    baselines: dict[tuple[ModelIdentity, str, str, str], Row] = {}
    for row in rows:
        if row.tool == UNQUANTIZED_TOOL:
            baselines.setdefault(_comparison_key(row), row)
    compared = []
    for row in rows:
        baseline = baselines.get(_comparison_key(row))
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
