"""Export as `.eval` logs of Inspect (format 2, as inspect_ai 0.3.285 writes): one per variant and task.

A log is a zip archive of JSON documents. The texts of data sets are not in `results.h5`, so the input of a sample names
the item, and its metadata have the responses.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcq.core.files import committed_file
from hpcq.report.exports.item_responses import ItemResponses, item_metrics, item_responses
from hpcq.report.exports.variants import ExportedVariant, exported_variants, file_name
from hpcq.report.make_report import MergedRun
from hpcq.store.item_scores import NO_TARGET, TaskItems

_VERSION = 2
_CHOICE = 2
"""Parts of the response to a log-likelihood request: the number and the greedy flag."""


def export_inspect(runs: Sequence[MergedRun], folder: Path) -> Iterator[Path]:
    """Write one folder per variant below `folder` with one log per task, and yield the paths of the logs.

    Args:
        runs: The runs.
        folder: Folder to write to; it is created.

    Raises:
        RunIncompleteError: A run has no merged results yet.
        StorageError: The files cannot be written.
    """
    for own in exported_variants(runs, folder):
        tables = {table.task: table for table in own.items.tasks}
        for task in own.scores.rows:
            columns = own.file.columns(own.scores.variant, task)
            if columns is not None:
                samples = list(_samples(own, task, list(item_responses(columns)), tables.get(task)))
                path = own.folder / f"{own.date_id}_{file_name(task)}.eval"
                with committed_file(path) as temporary:
                    _write(temporary, own, _header(own, task, len(samples)), samples)
                yield path


def _write(path: Path, own: ExportedVariant, header: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> None:
    summaries = [
        {name: sample[name] for name in ("id", "epoch", "input", "target", "scores")} | {"completed": True}
        for sample in samples
    ]
    documents: list[tuple[str, Any]] = [
        ("_journal/start.json", {name: header[name] for name in ("version", "eval", "plan")}),
        *((f"samples/{sample['id']}_epoch_{sample['epoch']}.json", sample) for sample in samples),
        ("_journal/summaries/1.json", summaries),
        ("summaries.json", summaries),
        ("header.json", header),
    ]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, document in documents:
            # The time of the merge, so that the same results give the same bytes.
            member = zipfile.ZipInfo(name, date_time=own.when.timetuple()[:6])
            archive.writestr(member, json.dumps(document), zipfile.ZIP_DEFLATED)


def _header(own: ExportedVariant, task: str, count: int) -> dict[str, Any]:
    """Return the log without its samples."""
    identity = hashlib.sha256(f"{own.scores.variant}/{task}".encode()).hexdigest()[:22]
    time = own.when.isoformat()
    versions = own.document("backend_versions") or {}
    return {
        "version": _VERSION,
        "status": "success",
        "eval": {
            "eval_id": identity,
            "run_id": own.scores.variant,
            "created": time,
            "task": task,
            "task_id": task,
            "task_version": own.file.task_version(own.scores.variant, task),
            "dataset": {"name": task, "samples": count, "sample_ids": None},
            "model": f"{own.model_type}/{own.model_name}",
            "model_args": {"dtype": own.fact("dtype"), "revision": own.fact("model_revision")},
            "config": {"epochs": 1},
            "packages": {name: str(version) for name, version in versions.items()},
            "metadata": {"hpcq": own.origin},
        },
        "plan": {"name": "plan", "steps": [], "config": {}},
        "results": {
            "total_samples": count,
            "completed_samples": count,
            "scores": [
                {
                    "name": _score_name(score.metric, score.filter),
                    "scorer": _score_name(score.metric, score.filter),
                    "metrics": _metrics(score.value, score.stderr),
                }
                for score in own.scores.scores
                if score.task == task
            ],
        },
        "stats": {"started_at": time, "completed_at": time},
    }


def _metrics(value: float, stderr: float | None) -> dict[str, Any]:
    found = {"mean": value} if stderr is None else {"mean": value, "stderr": stderr}
    return {name: {"name": name, "value": number} for name, number in found.items()}


def _score_name(metric: str, filter_: str) -> str:
    return metric if filter_ == "none" else f"{metric} ({filter_})"


def _samples(
    own: ExportedVariant, task: str, items: Sequence[ItemResponses], table: TaskItems | None
) -> Iterator[dict[str, Any]]:
    targets = {} if table is None else dict(zip(table.doc_id.tolist(), table.target.tolist(), strict=True))
    metrics = {
        _score_name(metric, filter_): found
        for filter_, values in item_metrics(table).items()
        for metric, found in values.items()
    }
    for item in items:
        target = targets.get(item.doc_id, NO_TARGET)
        yield {
            "id": item.doc_id,
            "epoch": 1,
            "input": f"Item {item.doc_id} of {task}. The texts of data sets are not stored.",
            "target": "" if target == NO_TARGET else str(target),
            "messages": [],
            "output": {"model": own.model_name, "choices": [], "completion": _completion(item)},
            "scores": {name: {"value": found[item.doc_id]} for name, found in metrics.items() if item.doc_id in found},
            "metadata": {"responses": item.responses, "digest": item.digest},
            "store": {},
            "events": [],
            "attachments": {},
        }


def _completion(item: ItemResponses) -> str:
    """Return the generated text, or the index of the choice with the largest log-likelihood."""
    first = [repeats[0] for repeats in item.responses]
    if all(isinstance(response, list) and len(response) == _CHOICE for response in first):
        return str(max(range(len(first)), key=lambda at: float(first[at][0])))
    return str(first[0])
