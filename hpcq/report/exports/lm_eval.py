"""Export in the format of lm-eval 0.4.13: `results_*.json` and `samples_*.jsonl` per variant.

`results.h5` has responses and scores of items, but not the texts of data sets. So the samples have no documents, no
prompts and no hashes of prompts; they have the index of each document, the responses, and the values of metrics.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcq.catalog.tasks import find_task
from hpcq.core.files import committed_file, write_text
from hpcq.report.clean_text import valid_unicode
from hpcq.report.exports.item_responses import UNFILTERED, ItemResponses, item_metrics, item_responses
from hpcq.report.exports.variants import ExportedVariant, exported_variants, file_name, plain
from hpcq.report.make_report import MergedRun
from hpcq.report.prompt_facts import CHAT_TEMPLATES
from hpcq.store.item_scores import NO_TARGET, TaskItems


def export_lm_eval(runs: Sequence[MergedRun], folder: Path) -> Iterator[Path]:
    """Write one folder per variant below `folder`, and yield the paths of the files.

    The names contain the time of the merge. So the same results give the same files.

    Args:
        runs: The runs.
        folder: Folder to write to; it is created.

    Raises:
        RunIncompleteError: A run has no merged results yet.
        StorageError: The files cannot be written.
    """
    for own in exported_variants(runs, folder):
        path = own.folder / f"results_{own.date_id}.json"
        write_text(path, json.dumps(valid_unicode(_results(own)), indent=2) + "\n")
        yield path
        tables = {table.task: table for table in own.items.tasks}
        for task in own.scores.rows:
            columns = own.file.columns(own.scores.variant, task)
            if columns is not None:
                path = own.folder / f"samples_{file_name(task)}_{own.date_id}.jsonl"
                with committed_file(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
                    for sample in _samples(list(item_responses(columns)), tables.get(task)):
                        lines.write(json.dumps(sample) + "\n")
                yield path


def _results(own: ExportedVariant) -> dict[str, Any]:
    """Return the content of `results_*.json` (`lm_eval.result_schema.EvalResults`)."""
    tables: dict[str, dict[str, Any]] = {}
    for score in own.scores.scores:
        table = tables.setdefault(score.task, {"name": score.task, "alias": score.task, "sample_len": score.n})
        table[f"{score.metric},{score.filter}"] = score.value
        table[f"{score.metric}_stderr,{score.filter}"] = "N/A" if score.stderr is None else score.stderr
    members = {share.group: sorted(share.shares) for share in own.items.groups}
    groups = {name: table for name, table in tables.items() if name in members}
    settings = {task["name"]: task for task in own.document("tasks") or ()}
    return {
        "results": tables,
        **({"groups": groups} if groups else {}),
        "group_subtasks": members,
        "configs": {name: {"task": name, **settings.get(name, {})} for name in sorted(tables)},
        "versions": {name: _version(own, name) for name in sorted(tables) if name in own.scores.rows},
        "n-shot": {name: shots for name in sorted(tables) if (shots := _shots(name, members, settings)) is not None},
        "higher_is_better": {},
        "n-samples": {
            name: _sample_count(table, _own_settings(name, members, settings)) for name, table in tables.items()
        },
        "config": _config(own),
        **_prompt(settings.values(), own.document(CHAT_TEMPLATES) or {}),
        "date": own.when.timestamp(),
        "lm_eval_version": (own.document("backend_versions") or {}).get("lm-eval"),
        "transformers_version": (own.document("backend_versions") or {}).get("transformers"),
        "model_source": own.model_type,
        "model_name": own.model_name,
        "model_name_sanitized": file_name(own.model_name),
        "task_hashes": {},
        "total_evaluation_time_seconds": own.fact("evaluate_seconds"),
        "hpcq": own.origin,
    }


def _prompt(tasks: Iterable[Mapping[str, Any]], templates: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings of prompts under lm-eval's keys, if all tasks have the same, which are not the defaults.

    lm-eval has one setting for all tasks; those of single tasks are in `configs`.
    """
    prompts = [task.get("prompt", {}) for task in tasks]
    if not prompts or not prompts[0] or any(prompt != prompts[0] for prompt in prompts):
        return {}
    [system, requested] = [prompts[0].get(name) for name in ("system", "chat_template")]
    return {
        "system_instruction": system,
        "system_instruction_sha": hashlib.sha256(system.encode()).hexdigest() if system else None,
        "fewshot_as_multiturn": bool(prompts[0].get("fewshot_as_multiturn")),
        "chat_template_sha": templates.get(json.dumps(requested)),
    }


def _config(own: ExportedVariant) -> dict[str, Any]:
    arguments = {"pretrained": own.fact("model"), "dtype": own.fact("dtype"), "quantization_scheme": own.fact("scheme")}
    arguments |= {"revision": own.fact("model_revision")} if own.fact("model_revision") else {}
    return {
        "model": own.model_type,
        "model_args": arguments,
        "model_dtype": own.fact("dtype"),
        "model_revision": own.fact("model_revision"),
        "batch_size": own.fact("batch_size") or None,
        "device": own.fact("device") or None,
        "random_seed": plain(own.scores.provenance.get("seed")),
    }


def _version(own: ExportedVariant, task: str) -> str | float:
    version = own.file.task_version(own.scores.variant, task)
    try:
        return float(version)
    except ValueError:
        return version


def _shots(name: str, members: Mapping[str, Sequence[str]], settings: Mapping[str, Mapping[str, Any]]) -> int | None:
    """Return the number of examples of a task, or of a member of a group; None if it is unknown."""
    for candidate in _with_groups(name, members):
        shots = settings.get(candidate, {}).get("num_fewshot")
        info = find_task(candidate)
        if shots is not None:
            return int(shots)
        if info is not None:
            return info.num_fewshot
    return None


def _own_settings(
    name: str, members: Mapping[str, Sequence[str]], settings: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Return the settings of a task; a member of a group has those of the group."""
    return next((settings[candidate] for candidate in _with_groups(name, members) if candidate in settings), {})


def _with_groups(name: str, members: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    return (name, *(group for group, own in members.items() if name in own))


def _sample_count(table: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, int | None]:
    """Return the number of items; that of the data set is unknown if only some of its items were selected."""
    is_part = settings.get("limit") or settings.get("items")
    return {"original": None if is_part else table["sample_len"], "effective": table["sample_len"]}


def _samples(items: Sequence[ItemResponses], table: TaskItems | None) -> Iterator[dict[str, Any]]:
    """Yield the lines of `samples_*.jsonl` (`lm_eval.result_schema.SampleResult`): all items of each filter."""
    metrics = item_metrics(table)
    targets = {} if table is None else dict(zip(table.doc_id.tolist(), table.target.tolist(), strict=True))
    for (filter_, values), item in itertools.product((metrics or {UNFILTERED: {}}).items(), items):
        target = targets.get(item.doc_id, NO_TARGET)
        text = "" if target == NO_TARGET else str(target)
        own = {name: found[item.doc_id] for name, found in values.items() if item.doc_id in found}
        yield {
            "doc_id": item.doc_id,
            "doc": {"hpcq_digest": item.digest},
            "target": text,
            "arguments": {},
            "resps": item.responses,
            # What lm-eval's filters return is not stored, and `none` returns the first response to each request.
            "filtered_resps": [repeats[0] for repeats in item.responses] if filter_ == UNFILTERED else [],
            "filter": filter_,
            "metrics": list(own),
            "doc_hash": "",
            "prompt_hash": "",
            "target_hash": hashlib.sha256(text.encode()).hexdigest() if text else "",
            **own,
        }
