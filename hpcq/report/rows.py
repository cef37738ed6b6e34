"""Rows of a report: one per variant, task and metric, each with the baseline of its model."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import nan
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hpcq.catalog.main_metrics import is_share
from hpcq.catalog.tasks import find_task
from hpcq.core.frozen import dataclass
from hpcq.report.failed_variants import VariantFailure
from hpcq.report.model_labels import ModelIdentity
from hpcq.report.paired import PairedResult
from hpcq.report.prompt_facts import other_template
from hpcq.verify.marks import Mark, marks_of_task

if TYPE_CHECKING:
    from hpcq.store import Results, Score, VariantScores

UNQUANTIZED_TOOL = "none"
_PAIRED_FIELDS = tuple(field.name for field in dataclasses.fields(PairedResult))
_OTHER_TEMPLATE = "its prompts come from another chat template than those of the baseline: not comparable"
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
        baseline_run: Run of the baseline, if it is another one (`hpcq.report.baselines`).
        baseline_problem: Why a quantized variant has no baseline; None: it has one.
        delta: `value - baseline_value`.
        checkpoint_bytes: Size of the weights on disk.
        quantize_seconds: Time to quantize the checkpoint.
        quantize_peak_bytes: Peak host memory of the process that quantized it.
        evaluate_seconds: Time to answer the requests, summed over shards.
        asked_tokens: Tokens of all log-likelihood requests of the variant, without prefix sharing.
        computed_tokens: Tokens computed for these requests.
        prefix_sharing: 'exact' (within 1e-4), 'within rounding', 'within the rounding of quantized activations', or the
            reason why prefixes were not shared.
        prefix_sharing_difference: Largest difference, in nats, of a log-likelihood in the check of prefix sharing.
        prefix_sharing_tolerance: Largest difference that was permitted.
        batch_difference: Largest difference of a log-likelihood between two batch sizes, without shared prefixes.
        published_value: Score in a published study, in percent, on the scale of the study.
        published_delta: `published_own - published_value`.
        published_source: Name of that study.
        published_scale: 'raw': the metric; 'normalized': that of version 2 of the Open LLM Leaderboard.
        published_own: The score on that scale, in percent.
        published_low: Lower end of the 95 % interval of `published_delta`, for two independent samples of the items.
        published_high: Upper end.
        published_protocol: How the protocol of the study differs.
        model_revision: Commit, branch or tag of the model on the hub; None if none was named.
        model_digest: SHA-256 of the model's files; None if it is unknown.
        dtype: Data type of the computation.
        gpu_class: Class of the nodes that answered the requests; several, separated by commas, if classes are mixed.
        checkpoint: Id of the checkpoint, with its commit, if others quantized it.
        marks: Warnings about the score: the marks of the task, and those of all tasks of the variant.
        failure: Why responses are missing; None if none is, or if no unit has failed.
        low: Lower end of the 95 % interval of the score; None if the score is not a mean over items.
        high: Upper end.
        baseline_variant: Id of the baseline.
        paired: Comparison with the baseline on the same items.
        documents: Number of documents of the full benchmark; None: the catalog does not know the task.
        missing_responses: Requests of the variant that have no response.
        device: Device that answered the requests.
        kernels: Kernels that computed the quantized layers; None: the backend named none.
        versions: Versions of the tools that quantized the model and answered the requests.
        not_comparable: How the requests differ from those of another run of the report with the same task.
        lower_is_better: Whether a lower score is better, as a perplexity is.
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
    baseline_run: str | None = None
    baseline_problem: str | None = None
    delta: float | None = None
    checkpoint_bytes: int | None = None
    quantize_seconds: float | None = None
    quantize_peak_bytes: int | None = None
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
    published_scale: str | None = None
    published_own: float | None = None
    published_low: float | None = None
    published_high: float | None = None
    published_protocol: tuple[str, ...] = ()
    model_revision: str | None = None
    model_digest: str | None = None
    dtype: str | None = None
    gpu_class: str | None = None
    checkpoint: str | None = None
    marks: tuple[Mark, ...] = ()
    failure: VariantFailure | None = None
    low: float | None = None
    high: float | None = None
    baseline_variant: str | None = None
    paired: PairedResult | None = None
    documents: int | None = None
    missing_responses: int | None = None
    device: str | None = None
    kernels: str | None = None
    versions: str | None = None
    not_comparable: str | None = None
    lower_is_better: bool = False

    @property
    def model_identity(self) -> ModelIdentity:
        """Identity of the model; rows of different models are never compared."""
        return ModelIdentity(id=self.model, revision=self.model_revision or "", digest=self.model_digest or "")

    @property
    def is_share(self) -> bool:
        """Whether the score is a share, which tables show in percent; a perplexity is not."""
        return is_share(self.metric)

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
        paired = dict.fromkeys(_PAIRED_FIELDS) if self.paired is None else dataclasses.asdict(self.paired)
        row = {**dataclasses.asdict(self), "marks": [mark.as_json() for mark in self.marks]}
        del row["paired"]
        return {**row, **paired}


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
    missing = Counter({item.variant: 0 for item in variants})
    for item in results.merge.get("missing_from", ()):
        missing[item["variant"]] += item["rows"]
    rows = [
        row
        for variant in variants
        for row in sorted(
            _rows(results.run, variant, task_order, failures.get(variant.variant)),
            key=lambda row: (_rank(task_order, row.task), row.metric, row.filter),
        )
    ]
    rows = [dataclasses.replace(row, missing_responses=missing[row.variant]) for row in rows]
    attributes = {variant.variant: variant.provenance for variant in variants}
    return _with_baselines(_with_distinct_schemes(rows), attributes)


def _rank(order: Sequence[str], name: str) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order), name)


def _rows(run: str, variant: VariantScores, tasks: Sequence[str], failure: VariantFailure | None) -> Iterator[Row]:
    """Yield the scores of a variant, and a row without value for each task whose main score is withheld or missing."""
    marks = tuple(Mark.from_json(document) for document in variant.marks or ())
    for score in variant.scores:
        yield _row(run, variant, score, marks_of_task(marks, score.task))
    scored = {(score.task, score.metric, score.filter) for score in variant.scores}
    for name in sorted({mark.task for mark in marks if mark.kind.withholds_score}):
        unscored = _unscored(name, variant)
        if (name, unscored.metric, unscored.filter) not in scored:
            yield dataclasses.replace(_row(run, variant, unscored, marks_of_task(marks, name)), value=None)
    named = {score.task for score in variant.scores} | {mark.task for mark in marks if mark.kind.withholds_score}
    for name in dict.fromkeys(tasks):
        if name not in named:
            row = _row(run, variant, _unscored(name, variant), marks_of_task(marks, name))
            yield dataclasses.replace(row, value=None, failure=failure)


@dataclass(frozen=True, kw_only=True)
class _MainMetric:
    """The metric of a task that tables show, its filter, and its direction."""

    metric: str = ""
    filter: str = ""
    lower_is_better: bool = False


def _main_metric(name: str, variant: VariantScores) -> _MainMetric | None:
    """Return the main metric of a task: that of the catalog, or that of its definition, which the merge recorded.

    It is the metric's avg@n if the task has n texts per prompt.
    """
    task = find_task(name)
    recorded = json.loads(str(variant.provenance.get("main_metrics") or "{}")).get(name)
    if task is not None:
        found = _MainMetric(metric=task.metric, filter=task.filter, lower_is_better=task.lower_is_better)
    elif recorded:
        found = _MainMetric(**recorded)
    else:
        return None
    own = (one.metric for one in variant.scores if one.task == name and one.filter == found.filter)
    averages = (metric for metric in own if metric.startswith(f"{found.metric}_avg@"))
    return dataclasses.replace(found, metric=next(averages, found.metric))


def _unscored(name: str, variant: VariantScores) -> Score:
    """Return the place of a task's main score."""
    from hpcq.store import Score

    main = _main_metric(name, variant) or _MainMetric()
    return Score(task=name, metric=main.metric, filter=main.filter, value=nan, stderr=None, n=0)


def _row(run: str, variant: VariantScores, score: Score, marks: tuple[Mark, ...]) -> Row:
    provenance = variant.provenance
    main = _main_metric(score.task, variant)
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
        is_main=main is not None and (score.metric, score.filter) == (main.metric, main.filter),
        lower_is_better=main is not None and main.lower_is_better,
        checkpoint_bytes=int(provenance["checkpoint_bytes"]) if "checkpoint_bytes" in provenance else None,
        quantize_seconds=float(provenance["quantize_seconds"]) if "quantize_seconds" in provenance else None,
        quantize_peak_bytes=int(provenance["quantize_peak_bytes"]) if "quantize_peak_bytes" in provenance else None,
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
        gpu_class=str(provenance.get("gpu_class") or "").removeprefix(", ") or None,
        checkpoint="@".join(filter(None, (str(provenance.get(key) or "") for key in _CHECKPOINT_KEYS))) or None,
        marks=marks,
        documents=known.documents if (known := find_task(score.task)) else None,
        device=str(provenance.get("device") or "") or None,
        kernels=str(provenance.get("quantization_kernels") or provenance.get("quantization") or "") or None,
        versions=_versions(provenance),
    )


def _versions(provenance: Mapping[str, Any]) -> str | None:
    """Return the versions of the tools: 'lm-eval 0.4.13, vllm 0.32.0'."""
    documents = (json.loads(str(provenance.get(name) or "{}")) for name in ("quantizer_versions", "backend_versions"))
    found = {name: version for document in documents for name, version in document.items()}
    return ", ".join(f"{name} {version}" for name, version in found.items()) or None


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


def _with_baselines(rows: Sequence[Row], attributes: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Compare rows with the unquantized variant, unless their prompts come from other chat templates."""
    baselines: dict[tuple[ModelIdentity, str, str, str], Row] = {}
    for row in rows:
        if row.tool == UNQUANTIZED_TOOL:
            baselines.setdefault(_comparison_key(row), row)
    compared = []
    for row in rows:
        baseline = baselines.get(_comparison_key(row))
        if baseline is None or baseline is row:
            compared.append(row)
        elif other_template(attributes[row.variant], attributes[baseline.variant]):
            compared.append(dataclasses.replace(row, baseline_problem=_OTHER_TEMPLATE))
        else:
            compared.append(with_baseline(row, baseline))
    return compared


def with_baseline(row: Row, baseline: Row) -> Row:
    """Return the row with its baseline and the difference from it."""
    return dataclasses.replace(
        row,
        baseline_value=baseline.value,
        baseline_backend=baseline.backend,
        baseline_variant=baseline.variant,
        delta=None if row.value is None or baseline.value is None else row.value - baseline.value,
    )
