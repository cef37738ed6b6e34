"""Rows of a report: one per variant, task and metric, each with the baseline of its model."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from types import MappingProxyType
from typing import Any

from hpcq.catalog.tasks import find_task
from hpcq.report.failed_variants import VariantFailure
from hpcq.report.model_labels import ModelIdentity
from hpcq.store import Results, Score, VariantScores
from hpcq.verify.marks import Mark, marks_of_task

UNQUANTIZED_TOOL = "none"
_CHECKPOINT_KEYS = ("checkpoint", "checkpoint_revision")


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
        value: The score; None if it is withheld (`marks` has the reason), or if responses are missing.
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
        prefix_sharing: 'exact' (within 1e-4), 'within rounding', 'within the rounding of quantized activations', or the
            reason why prefixes were not shared.
        prefix_sharing_difference: Largest difference, in nats, of a log-likelihood in the check of prefix sharing.
        prefix_sharing_tolerance: Largest difference that was permitted.
        batch_difference: Largest difference of a log-likelihood between two batch sizes, without shared prefixes.
        published_value: Score in a published study, in percent.
        published_delta: `100 * value - published_value`.
        published_source: Name of that study.
        model_revision: Commit, branch or tag of the model on the hub; None if none was named.
        model_digest: SHA-256 of the model's files; None if it is unknown.
        dtype: Data type of the computation.
        checkpoint: Id of the checkpoint, with its commit, if others quantized it.
        marks: Warnings about the score: the marks of the task, and those of all tasks of the variant.
        failure: Why responses are missing; None if none is, or if no unit has failed.
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
    value: float | None
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
    prefix_sharing_difference: float | None = None
    prefix_sharing_tolerance: float | None = None
    batch_difference: float | None = None
    published_value: float | None = None
    published_delta: float | None = None
    published_source: str | None = None
    model_revision: str | None = None
    model_digest: str | None = None
    dtype: str | None = None
    checkpoint: str | None = None
    marks: tuple[Mark, ...] = ()
    failure: VariantFailure | None = None

    @property
    def model_identity(self) -> ModelIdentity:
        """Identity of the model; rows of different models are never compared."""
        return ModelIdentity(id=self.model, revision=self.model_revision or "", digest=self.model_digest or "")

    @property
    def is_cross_backend(self) -> bool:
        """Whether another backend evaluated the baseline."""
        return self.baseline_backend not in (None, self.backend)

    @property
    def is_withheld(self) -> bool:
        """Whether the responses are there, but the score would be wrong."""
        return self.value is None and any(mark.kind.withholds_score for mark in self.marks)

    def as_json(self) -> dict[str, Any]:
        """Return the row as plain JSON types."""
        return {**dataclasses.asdict(self), "marks": [mark.as_json() for mark in self.marks]}


def make_rows(
    results: Results,
    *,
    variant_order: Sequence[str] = (),
    task_order: Sequence[str] = (),
    failures: Mapping[str, VariantFailure] = MappingProxyType({}),
) -> list[Row]:
    """Return one row per score, and a row without value for each planned task of a variant that has no score.

    Args:
        results: Merged results of a run.
        variant_order: Variants in the order of the plan.
        task_order: Tasks in the order of the plan.
        failures: Why variants have missing responses.
    """
    variants = sorted(results.variants, key=lambda item: _rank(variant_order, item.variant))
    rows = [
        row
        for variant in variants
        for row in sorted(
            _rows(results.run, variant, task_order, failures.get(variant.variant)),
            key=lambda row: (_rank(task_order, row.task), row.metric, row.filter),
        )
    ]
    return _with_baselines(_with_distinct_schemes(rows))


def _rank(order: Sequence[str], name: str) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order), name)


def _rows(run: str, variant: VariantScores, tasks: Sequence[str], failure: VariantFailure | None) -> Iterator[Row]:
    """Yield the scores of a variant, and a row without value for each task whose main score is withheld or missing."""
    marks = tuple(Mark.from_json(document) for document in variant.marks or ())
    for score in variant.scores:
        yield _row(run, variant, score, marks_of_task(marks, score.task))
    scored = {(score.task, score.metric, score.filter) for score in variant.scores}
    for name in sorted({mark.task for mark in marks if mark.kind.withholds_score}):
        unscored = _unscored(name)
        if (name, unscored.metric, unscored.filter) not in scored:
            yield dataclasses.replace(_row(run, variant, unscored, marks_of_task(marks, name)), value=None)
    named = {score.task for score in variant.scores} | {mark.task for mark in marks if mark.kind.withholds_score}
    for name in dict.fromkeys(tasks):
        if name not in named:
            row = _row(run, variant, _unscored(name), marks_of_task(marks, name))
            yield dataclasses.replace(row, value=None, failure=failure)


def _unscored(name: str) -> Score:
    """Return the place of a task's main score."""
    task = find_task(name)
    metric, filter_ = (task.metric, task.filter) if task else ("", "")
    return Score(task=name, metric=metric, filter=filter_, value=nan, stderr=None, n=0)


def _row(run: str, variant: VariantScores, score: Score, marks: tuple[Mark, ...]) -> Row:
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
        prefix_sharing_difference=_number(provenance, "prefix_sharing_difference"),
        prefix_sharing_tolerance=_number(provenance, "prefix_sharing_tolerance"),
        batch_difference=_number(provenance, "batch_difference"),
        model_revision=str(provenance.get("model_revision") or "") or None,
        model_digest=str(provenance.get("model_digest") or "") or None,
        dtype=str(provenance.get("dtype") or "") or None,
        checkpoint="@".join(filter(None, (str(provenance.get(key) or "") for key in _CHECKPOINT_KEYS))) or None,
        marks=marks,
    )


def _number(provenance: Mapping[str, Any], name: str) -> float | None:
    return float(provenance[name]) if name in provenance else None


def _with_distinct_schemes(rows: Sequence[Row]) -> list[Row]:
    """Name the checkpoint, not only its publisher, where a model has several checkpoints with one scheme name."""
    variants: dict[tuple[ModelIdentity, str], set[str]] = defaultdict(set)
    for row in rows:
        variants[row.model_identity, row.scheme].add(row.variant)
    return [
        dataclasses.replace(row, scheme=f"{row.scheme.rpartition(' (')[0]} ({row.checkpoint})")
        if row.checkpoint and len(variants[row.model_identity, row.scheme]) > 1
        else row
        for row in rows
    ]


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
                    delta=None if row.value is None or baseline.value is None else row.value - baseline.value,
                )
            )
    return compared
