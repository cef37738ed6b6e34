"""The merge: all segments of a run become one results file, with scores where every request is answered.

Knows the store, the questions and scoring. Reads committed files alone, so that it may run at any time, also while jobs
do, and again; the same segments give the same bytes.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from hpcq import __version__
from hpcq.core.attempts import Attempt
from hpcq.core.completion import read_completion
from hpcq.core.work import EvaluateWork, MergeWork, Task, address_of, canonical
from hpcq.evaluate.request_set import Questions, questions_of
from hpcq.evaluate.unit_folders import unit_folders
from hpcq.store import (
    Index,
    MergeReport,
    Score,
    SegmentFacts,
    VariantResults,
    load,
    merge_report,
    results_hold,
    write_results,
)

_METADATA = "hpcq.json"
_WEIGHTS = ("*.safetensors", "*.bin")
_TOKEN_COUNTS = ("asked_tokens", "computed_tokens")

_AttemptName = tuple[str, str]
"""Its unit, and when it began."""

Provenance = Mapping[str, str | int | float | bool]


def merge(work: MergeWork, attempt: Attempt) -> None:
    """Write `work.results_path` from the segments that there are; a task of which responses are missing has no score.

    Raises:
        HpcqError: a task cannot be built, or the file system refused.
    """
    attempt.update(phase="building requests")
    questions = _questions(work)
    attempt.update(phase="reading segments")
    completions = {folder.name: word.digest for folder in _folders(work) if (word := read_completion(folder))}
    indexes = [_index(work, evaluation, questions[_asked_by(evaluation)]) for evaluation in work.evaluations]
    named = list(zip(work.evaluations, indexes, strict=True))
    path, provenance = Path(work.results_path), _provenance_of_run(work)
    inputs = {evaluation.variant.id: index.inputs for evaluation, index in named}
    if results_hold(path, inputs=inputs, provenance=provenance, completions=completions):
        attempt.update(phase=None, facts={"merged": "already"})
        return
    report = _report(named, questions)
    attempt.update(phase="scoring", total=report.expected, facts={"found": report.found, "missing": report.missing})
    variants = (_variant(evaluation, index, questions[_asked_by(evaluation)]) for evaluation, index in named)
    write_results(path, run=work.run, provenance=provenance, variants=variants, merge=report, completions=completions)
    attempt.update(phase=None, facts={"merged": "anew"})


_Asked = tuple[tuple[Task, ...], bool]


def _asked_by(evaluation: EvaluateWork) -> _Asked:
    return evaluation.tasks, evaluation.is_rehearsal


def _questions(work: MergeWork) -> dict[_Asked, Questions]:
    """Each list of tasks is built once, however many variants it is asked of."""
    asked = dict.fromkeys(map(_asked_by, work.evaluations))
    return {(tasks, is_rehearsal): questions_of(tasks, is_rehearsal=is_rehearsal) for tasks, is_rehearsal in asked}


def _folders(work: MergeWork) -> Iterator[Path]:
    for evaluation in work.evaluations:
        yield from unit_folders(Path(work.segments_path), evaluation.variant)


def _index(work: MergeWork, evaluation: EvaluateWork, questions: Questions) -> Index:
    folders = unit_folders(Path(work.segments_path), evaluation.variant)
    return load(folders, expect=questions.addresses(evaluation))


def _report(named: Sequence[tuple[EvaluateWork, Index]], questions: Mapping[_Asked, Questions]) -> MergeReport:
    keys = {asked: [request.key for request in one.requests] for asked, one in questions.items()}
    # An Index keeps the responses that it was asked for as a dictionary, ten times the size of its columns: a copy is
    # asked, one variant at a time, and dropped.
    return merge_report(
        (evaluation.variant.id, keys[_asked_by(evaluation)], replace(index)) for evaluation, index in named
    )


def _variant(evaluation: EvaluateWork, index: Index, questions: Questions) -> VariantResults:
    return VariantResults(
        variant=evaluation.variant.id,
        index=index,
        scores=_scores(index, questions),
        provenance=_provenance_of_variant(evaluation, index),
    )


def _scores(index: Index, questions: Questions) -> list[Score]:
    if not questions.built:
        return []
    from hpcq.evaluate.scoring import score

    return score(questions.built, replace(index).responses)


def _provenance_of_run(work: MergeWork) -> Provenance:
    return {
        "hpcq": __version__,
        "git_commit": _git_commit(),
        "evaluations": address_of("merge", [evaluation.address for evaluation in work.evaluations]),
        "rehearsal": any(evaluation.is_rehearsal for evaluation in work.evaluations),
    }


def _provenance_of_variant(work: EvaluateWork, index: Index) -> Provenance:
    variant = work.variant
    told = [segment.provenance for segment in index.segments]
    calibration = variant.calibration
    return {
        "model": variant.model.id,
        "model_revision": variant.model.revision or "",
        "model_digest": variant.model.digest or "",
        "scheme": variant.scheme.name,
        "tool": variant.scheme.tool,
        "recipe": _json(canonical(variant.scheme)),
        "calibration": _json(canonical(calibration)) if calibration else "",
        "quantizer_versions": _json(dict(variant.versions)),
        "variant_address": variant.address,
        "backend": work.backend,
        "backend_versions": _json(dict(work.versions)),
        "dtype": work.dtype,
        "seed": work.seed,
        "evaluation_address": work.address,
        "tasks": _json([canonical(task) for task in work.tasks]),
        "rehearsal": work.is_rehearsal,
        "node": _distinct(told, "node"),
        "device": _distinct(told, "device"),
        "batch_size": _distinct(told, "batch_size"),
        "prefix_sharing": _distinct(told, "prefix_sharing"),
        "evaluate_seconds": _evaluate_seconds(index),
        **_token_counts(index),
        **_checkpoint_facts(Path(work.checkpoint_path)),
    }


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _distinct(told: Sequence[Provenance], name: str) -> str:
    """What the segments tell under `name`: one value usually, several where shards ran on several nodes."""
    return ", ".join(sorted({str(provenance[name]) for provenance in told if name in provenance}))


def _evaluate_seconds(index: Index) -> float:
    """Time that attempts spent until their last segment, loading included; shards that ran at once are added up."""
    ends: dict[_AttemptName, str] = {}
    for segment in index.segments:
        attempt = _attempt(segment)
        ends[attempt] = max(ends.get(attempt, ""), segment.created)
    spans = (datetime.fromisoformat(end) - datetime.fromisoformat(start) for (_, start), end in sorted(ends.items()))
    return round(sum(span.total_seconds() for span in spans), 3)


def _token_counts(index: Index) -> dict[str, int]:
    """Tokens that attempts had counted at their last segment, added up; nothing where no segment tells any."""
    counts: dict[str, dict[_AttemptName, int]] = {}
    for segment in index.segments:
        for name in _TOKEN_COUNTS:
            if name in segment.provenance:
                of_attempts = counts.setdefault(name, {})
                attempt = _attempt(segment)
                of_attempts[attempt] = max(of_attempts.get(attempt, 0), int(segment.provenance[name]))
    return {name: sum(of_attempts.values()) for name, of_attempts in counts.items()}


def _attempt(segment: SegmentFacts) -> _AttemptName:
    return str(segment.provenance["unit"]), str(segment.provenance["attempt_start"])


def _checkpoint_facts(folder: Path) -> Provenance:
    """Bytes of the weights as stored, and the seconds that the quantizer noted; nothing of what is not in `folder`."""
    weights = [path for pattern in _WEIGHTS for path in folder.glob(pattern)]
    facts: dict[str, str | int | float | bool] = {}
    if weights:
        facts["checkpoint_bytes"] = sum(path.stat().st_size for path in weights)
    metadata = folder / _METADATA
    if metadata.is_file():
        facts["quantize_seconds"] = _seconds_in(json.loads(metadata.read_text(encoding="utf-8")))
    return facts


def _seconds_in(metadata: Mapping[str, Any]) -> float:
    return round(float(sum(metadata.get("seconds", {}).values())), 3)


def _git_commit() -> str:
    """The commit of the checkout that this runs from; empty where it is none."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
