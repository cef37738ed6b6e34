"""Merge of all segments of a run into results.h5, with the scores of completely answered tasks.

The merge reads only committed files, so it can run at any time, also during jobs, and any number of times. The same
segments give the same bytes.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

from hpcq import __version__
from hpcq.catalog.weight_files import weight_files
from hpcq.core.addressing import address_of, canonical
from hpcq.core.attempts import Attempt
from hpcq.core.completion_marker import read_completion_marker
from hpcq.core.environments import COMMIT_VARIABLE
from hpcq.core.errors import StorageError
from hpcq.core.paths import all_segment_folders
from hpcq.core.work_records import EvaluateWork, MergeWork, Task
from hpcq.evaluate.chat_templates import ChatTemplate, recorded_chat_template, template_provenance
from hpcq.evaluate.item_scores import ScoredTasks
from hpcq.evaluate.request_set import RequestSet, add_panels, build_request_set
from hpcq.evaluate.variant_facts import variant_facts, with_undefined_scores
from hpcq.store import (
    Index,
    MergeReport,
    SegmentInfo,
    VariantResults,
    compact,
    load_index,
    merge_report,
    results_are_current,
    write_results,
)
from hpcq.verify.marks import MarkKind, derive_marks

_LOG = logging.getLogger(__name__)

_AGREEMENT = ("prefix_sharing_difference", "prefix_sharing_tolerance", "batch_difference")
_TOKEN_COUNTS = ("asked_tokens", "computed_tokens")

_AttemptId = tuple[str, str]
"""Unit id, and start time of the attempt."""

Provenance = Mapping[str, str | int | float | bool]


def merge(work: MergeWork, attempt: Attempt) -> None:
    """Write `work.results_path` from the segments that exist, and compact them.

    A task with missing responses has no score.

    Raises:
        HpcqError: a task cannot be built, or the file system reported an error.
    """
    attempt.update(phase="building requests")
    request_sets = _request_sets(work)
    attempt.update(phase="reading segments")
    folders = _folders(work)
    markers = dict(_completions(work, folders))
    indexes = [
        load_index(
            folders[evaluation.variant.id],
            expect=request_sets[evaluation.variant.id].addresses(evaluation),
        )
        for evaluation in work.evaluations
    ]
    indexed = list(zip(work.evaluations, indexes, strict=True))
    path, provenance = Path(work.results_path), _run_provenance(work)
    inputs = {evaluation.variant.id: index.inputs for evaluation, index in indexed}
    if results_are_current(path, inputs=inputs, provenance=provenance, completions=markers):
        _compact(folders, markers)
        attempt.update(phase=None, facts={"merged": "unchanged"})
        return
    report = _report(indexed, request_sets)
    attempt.update(phase="scoring", total=report.expected, facts={"found": report.found, "missing": report.missing})
    variants = (_variant(evaluation, index, request_sets[evaluation.variant.id]) for evaluation, index in indexed)
    write_results(path, run=work.run, provenance=provenance, variants=variants, merge=report, completions=markers)
    attempt.update(phase="compacting segments")
    _compact(folders, markers)
    attempt.update(phase=None, facts={"merged": "written"})


def _compact(folders: Mapping[str, Sequence[Path]], complete: Collection[str]) -> None:
    """Compact the folders of all units; those of `complete` units to one file. The results do not depend on it."""
    for folder in itertools.chain.from_iterable(folders.values()):
        try:
            compact(folder, is_complete=folder.name in complete)
        except StorageError as error:
            _LOG.warning("Segments were not compacted: %s", error)


def _request_sets(work: MergeWork) -> dict[str, RequestSet]:
    """Return the requests of each variant.

    The benchmarks of a list of tasks are built once for all variants with one chat template; baselines differ from the
    others only in the fidelity panel.
    """
    benchmarks: dict[tuple[tuple[Task, ...], bool, ChatTemplate | None], RequestSet] = {}
    whole: dict[tuple[tuple[Task, ...], bool, ChatTemplate | None], RequestSet] = {}
    found: dict[str, RequestSet] = {}
    for evaluation in work.evaluations:
        tasks, is_synthetic = evaluation.tasks, evaluation.is_synthetic
        chat = recorded_chat_template(evaluation, Path(work.segments_path))
        without_panel = tuple(task for task in tasks if task.panel is None)
        key, whole_key = (without_panel, is_synthetic, chat), (tasks, is_synthetic, chat)
        if key not in benchmarks:
            benchmarks[key] = build_request_set(without_panel, is_synthetic=is_synthetic, chat=chat)
        if whole_key not in whole:
            whole[whole_key] = add_panels(benchmarks[key], tasks, is_synthetic=is_synthetic)
        found[evaluation.variant.id] = whole[whole_key]
    return found


def _completions(work: MergeWork, folders: Mapping[str, Sequence[Path]]) -> Iterator[tuple[str, str]]:
    """Yield each complete unit with the digest of its marker. Those of an earlier plan, with other tasks, are not."""
    for evaluation in work.evaluations:
        for folder in folders[evaluation.variant.id]:
            marker = read_completion_marker(folder)
            if marker is not None and marker.is_for(evaluation.address):
                yield folder.name, marker.digest


def _folders(work: MergeWork) -> dict[str, list[Path]]:
    """Return the folders of segments of each variant of the run."""
    found = all_segment_folders(Path(work.segments_path))
    return {evaluation.variant.id: found.get(evaluation.variant.id, []) for evaluation in work.evaluations}


def _report(indexed: Sequence[tuple[EvaluateWork, Index]], request_sets: Mapping[str, RequestSet]) -> MergeReport:
    distinct = {id(one): one for one in request_sets.values()}
    keys = {identity: [request.key for request in one.requests] for identity, one in distinct.items()}
    # An Index caches its responses as a dictionary, ten times the size of its columns. So a copy is read, one variant
    # at a time, and dropped.
    return merge_report(
        (evaluation.variant.id, keys[id(request_sets[evaluation.variant.id])], replace(index))
        for evaluation, index in indexed
    )


def _variant(evaluation: EvaluateWork, index: Index, request_set: RequestSet) -> VariantResults:
    facts = variant_facts(index, request_set, Path(evaluation.checkpoint_path), evaluation.variant.calibration)
    withheld = {mark.task for mark in derive_marks(facts) if mark.kind.withholds_score}
    scored = _scored(index, request_set, withheld)
    marks = derive_marks(with_undefined_scores(facts, scored.scores))
    for mark in marks:
        _LOG.warning("%s %s: %s", evaluation.variant.id, mark.task or "all tasks", mark.sentence)
    return VariantResults(
        variant=evaluation.variant.id,
        index=index,
        scores=[score for score in scored.scores if isfinite(score.value)],
        items=scored.items,
        provenance={
            **_variant_provenance(evaluation, index, facts.checkpoint, request_set),
            **template_provenance(evaluation, request_set.chat),
        },
        counts={name: asdict(counts) for name, counts in facts.tasks.items()},
        marks=[mark.as_json() for mark in marks],
    )


def _scored(index: Index, request_set: RequestSet, withheld: Collection[str]) -> ScoredTasks:
    if not request_set.built_tasks:
        return ScoredTasks()
    from hpcq.evaluate.scoring import score

    return score(request_set.built_tasks, replace(index).responses, withheld=withheld)


def _run_provenance(work: MergeWork) -> Provenance:
    return {
        "hpcq": __version__,
        "git_commit": os.environ.get(COMMIT_VARIABLE, ""),
        "evaluations": address_of("merge", [evaluation.address for evaluation in work.evaluations]),
        "rehearsal": any(evaluation.is_synthetic for evaluation in work.evaluations),
        # Results of a version that knows other marks are merged again.
        "marks": ", ".join(kind.name.lower() for kind in MarkKind),
        # Version of the scores of single items; results of a version with another number are merged again. Version 1
        # has no right choices of winogrande.
        "items": 2,
    }


def _code_isolation(work: EvaluateWork) -> Provenance:
    """Return how the code that models wrote was separated from the machine; nothing if no task runs code."""
    if not any(task.runs_code for task in work.tasks):
        return {}
    from hpcq.evaluate.code_execution.sandbox import isolation

    return {"code_isolation": str(isolation())}


def _main_metrics(request_set: RequestSet) -> Provenance:
    """Return the main metrics of tasks without a row in the catalog, because reports read no index."""
    if not request_set.built_tasks:
        return {}
    from hpcq.evaluate.scoring import main_metrics

    found = main_metrics(request_set.built_tasks)
    return {"main_metrics": _json(found)} if found else {}


def _variant_provenance(
    work: EvaluateWork, index: Index, checkpoint: Mapping[str, Any], request_set: RequestSet
) -> Provenance:
    variant = work.variant
    provenances = [segment.provenance for segment in index.segments]
    calibration = variant.calibration
    return {
        "model": variant.model.id,
        "model_revision": variant.model.revision or "",
        "model_digest": variant.model.digest or "",
        "scheme": variant.scheme.name,
        "tool": variant.scheme.tool,
        "recipe": _json(canonical(variant.scheme)),
        "checkpoint": variant.checkpoint.id if variant.checkpoint else "",
        "checkpoint_revision": (variant.checkpoint.revision if variant.checkpoint else None) or "",
        "calibration": _json(canonical(calibration)) if calibration else "",
        "quantizer_versions": _json(dict(variant.versions)),
        "variant_address": variant.address,
        "backend": work.backend,
        "backend_versions": _json(dict(work.versions)),
        "backend_environment": _distinct(provenances, "environment"),
        "package": _distinct(provenances, "package"),
        "dtype": work.dtype,
        "seed": work.seed,
        "options": _json(dict(work.options)),
        "evaluation_address": work.address,
        "tasks": _json([canonical(task) for task in work.tasks]),
        **_main_metrics(request_set),
        **_code_isolation(work),
        "rehearsal": work.is_synthetic,
        "node": _distinct(provenances, "node"),
        "gpu_class": _distinct(provenances, "gpu_class"),
        "device": _distinct(provenances, "device"),
        "batch_size": _distinct(provenances, "batch_size"),
        "prefix_sharing": _distinct(provenances, "prefix_sharing"),
        **{name: max(found) for name in _AGREEMENT if (found := _numbers(provenances, name))},
        "quantization": _distinct(provenances, "quantization"),
        "quantization_kernels": _distinct(provenances, "quantization_kernels"),
        "evaluate_seconds": _evaluate_seconds(index),
        **_token_counts(index),
        **_checkpoint_facts(Path(work.checkpoint_path), checkpoint),
    }


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _distinct(provenances: Sequence[Provenance], name: str) -> str:
    """Return the values of an attribute of the segments: usually one, several if shards ran on several nodes."""
    return ", ".join(sorted({str(provenance[name]) for provenance in provenances if name in provenance}))


def _numbers(provenances: Sequence[Provenance], name: str) -> list[float]:
    """Return the numbers of an attribute of the segments."""
    return [float(provenance[name]) for provenance in provenances if name in provenance]


def _evaluate_seconds(index: Index) -> float:
    """Return the sum of the attempts' times from start to last segment, with loading; parallel shards are added."""
    ends: dict[_AttemptId, str] = {}
    for segment in index.segments:
        attempt = _attempt_id(segment)
        ends[attempt] = max(ends.get(attempt, ""), segment.created)
    spans = (datetime.fromisoformat(end) - datetime.fromisoformat(start) for (_, start), end in sorted(ends.items()))
    return round(sum(span.total_seconds() for span in spans), 3)


def _token_counts(index: Index) -> dict[str, int]:
    """Return the sum of the attempts' token counts at their last segment; empty if no segment has counts."""
    counts: dict[str, dict[_AttemptId, int]] = {}
    for segment in index.segments:
        for name in _TOKEN_COUNTS:
            if name in segment.provenance:
                of_attempts = counts.setdefault(name, {})
                attempt = _attempt_id(segment)
                of_attempts[attempt] = max(of_attempts.get(attempt, 0), int(segment.provenance[name]))
    return {name: sum(of_attempts.values()) for name, of_attempts in counts.items()}


def _attempt_id(segment: SegmentInfo) -> _AttemptId:
    return str(segment.provenance["unit"]), str(segment.provenance["attempt_start"])


def _checkpoint_facts(folder: Path, metadata: Mapping[str, Any]) -> Provenance:
    """Return the bytes of the stored weights in `folder`, and the quantizer's seconds, peak memory and environment."""
    facts: dict[str, str | int | float | bool] = {}
    weights = weight_files(folder)
    if weights:
        facts["checkpoint_bytes"] = sum(path.stat().st_size for path in weights)
    if metadata:
        facts["quantize_seconds"] = _quantize_seconds(metadata)
        if peak := metadata.get("peak_memory_bytes"):
            facts["quantize_peak_bytes"] = int(peak)
        facts["quantizer_environment"] = metadata.get("environment", "")
    return facts


def _quantize_seconds(metadata: Mapping[str, Any]) -> float:
    return round(float(sum(metadata.get("seconds", {}).values())), 3)
