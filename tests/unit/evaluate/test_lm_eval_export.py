"""Files for other tools, compared with those that lm-eval writes, and read by lm-eval and by datasets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets
import lm_eval.evaluator
import pytest
from lm_eval.api.metrics import mean
from lm_eval.loggers import EvaluationTracker
from lm_eval.utils import get_results_filenames, get_sample_results_filenames, make_table

from hpcq.core.work_records import Task
from hpcq.evaluate.lm_eval_tasks import BuiltTask, build_tasks
from hpcq.evaluate.scoring import StoreLM, score
from hpcq.report.exports.lm_eval import export_lm_eval
from hpcq.report.make_report import MergedRun
from hpcq.store import Index, MergeReport, RequestKey, Response, VariantResults, write_results
from hpcq.store.response_columns import Table, columns_from_rows

PROVENANCE = {
    "model": "org/Some-Model", "scheme": "gptq-w4a16", "tool": "llmcompressor", "backend": "accelerate",
    "evaluate_seconds": 12.5, "dtype": "bfloat16", "model_revision": "c0ffee", "seed": 1234,
    "backend_versions": '{"lm-eval": "0.4.13"}',
}  # fmt: skip
NOT_STORED = {"doc", "arguments", "doc_hash", "prompt_hash"}
"""What `results.h5` does not have: texts of the data set, and prompts."""


def built_task(name: str, folder: Path) -> BuiltTask:
    """Build a task with generated documents."""
    (built,) = build_tasks([Task(name=name, data_path=str(folder))])
    return built


def answers_to(built: BuiltTask) -> dict[RequestKey, Response]:
    """Answer every request; texts contain what could be markup, and half of a surrogate pair."""
    found = {}
    for number, request in enumerate(built.requests()):
        is_text = request.key.task == "gsm8k"
        found[request.key] = (
            Response(text=f"<b>#### {number}</b> \ud83d", loglikelihood=None, is_greedy=None)
            if is_text
            else Response(loglikelihood=-1.5 - (number * 7) % 5, is_greedy=number % 3 == 0)
        )
    return found


def exported(folder: Path, built: BuiltTask, answers: dict[RequestKey, Response], **settings: Any) -> list[Path]:
    """Merge the answers as the merge does, and export them; `settings` are those of the task."""
    scored = score([built], answers)
    table = Table(
        task=built.task.name,
        task_version=built.versions[built.task.name],
        address="a",
        columns=columns_from_rows(sorted(answers.items())),
    )
    tasks = json.dumps([{"name": built.task.name, "num_fewshot": 0, **settings}])
    variant = VariantResults(
        variant="some-model--gptq--1",
        index=Index(tables=(table,), conflicts=(), set_aside=(), segments=(), duplicates=0, ignored=0, inputs="i"),
        scores=scored.scores,
        items=scored.items,
        provenance={**PROVENANCE, "tasks": tasks},
    )
    report = MergeReport(expected=9, found=9, missing=0, duplicates=0, conflicts=(), set_aside=())
    write_results(folder / "results.h5", run="r", provenance={}, variants=[variant], merge=report)
    run = MergedRun(name="r", results=folder / "results.h5", plan_document={"units": []})
    return list(export_lm_eval([run], folder / "exported"))


def written_by_lm_eval(folder: Path, built: BuiltTask, answers: dict[RequestKey, Response]) -> list[Path]:
    """Return the files that lm-eval writes for the same answers."""
    os.environ["DISABLE_MULTIPROC"] = "1"
    for leaf in built.leaves.values():
        for instance in leaf.instances:
            instance.resps.clear()
            instance.filtered_resps.clear()
    results = lm_eval.evaluator.evaluate(
        lm=StoreLM(answers, built.versions), task_dict={"tasks": built.leaves, "groups": {}}, log_samples=True
    )
    tracker = EvaluationTracker(output_path=str(folder / "reference"))
    tracker.general_config_tracker.log_experiment_args("hf", "pretrained=org/Some-Model", None, None, False)  # noqa: FBT003
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name, own in samples.items():
        tracker.save_results_samples(task_name=name, samples=own)
    return sorted((folder / "reference").rglob("*.json*"))


def lines(paths: list[Path]) -> list[dict[str, Any]]:
    """Return the samples, sorted by filter and document."""
    (path,) = (path for path in paths if path.name.startswith("samples_"))
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(found, key=lambda sample: (sample["filter"], sample["doc_id"]))


def results_of(paths: list[Path]) -> dict[str, Any]:
    """Return the aggregated results."""
    (path,) = (path for path in paths if path.name.startswith("results_"))
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_multiple_choice_is_exported_as_lm_eval_writes_it(arc_items: Path, tmp_path: Path) -> None:
    """All keys are the same, and all values except the texts that are not stored; lm-eval prints the same table."""
    built = built_task("arc_challenge", arc_items)
    answers = answers_to(built)
    own, reference = exported(tmp_path, built, answers), written_by_lm_eval(tmp_path, built, answers)
    for sample, expected in zip(lines(own), lines(reference), strict=True):
        assert set(sample) == set(expected)
        assert {k: v for k, v in sample.items() if k not in NOT_STORED} == {
            k: v for k, v in expected.items() if k not in NOT_STORED
        }
    ours, theirs = results_of(own), results_of(reference)
    assert ours["results"] == theirs["results"]
    for key in ("versions", "n-shot", "n-samples", "group_subtasks", "model_source"):
        assert ours[key] == theirs[key], key
    assert set(theirs) - set(ours) <= {
        "system_instruction", "system_instruction_sha", "fewshot_as_multiturn", "chat_template", "chat_template_sha",
        "start_time", "end_time",
    }  # fmt: skip
    assert make_table({**ours, "higher_is_better": theirs["higher_is_better"]}) == make_table(theirs)
    names = [str(path) for path in own]
    assert (len(get_results_filenames(names)), len(get_sample_results_filenames(names))) == (1, 1)


@pytest.mark.parametrize("settings", [{"limit": 8}, {"items": {"sample": 8, "seed": 1}}])
def test_a_selection_of_items_is_not_shown_as_the_whole_data_set(
    settings: dict[str, Any], arc_items: Path, tmp_path: Path
) -> None:
    """`n-samples` has the number of all items only if all were evaluated."""
    built = built_task("arc_challenge", arc_items)
    own = results_of(exported(tmp_path, built, answers_to(built), **settings))
    assert own["n-samples"]["arc_challenge"]["original"] is None


def test_generated_texts_are_exported(tmp_path: Path) -> None:
    """Both filters of GSM8K have their values; datasets reads the file, and its mean is the score."""
    folder = tmp_path / "items"
    folder.mkdir()
    row = json.dumps({"question": "How many?", "answer": "Two.\n#### 2"}) + "\n"
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(row * 8)
    built = built_task("gsm8k", folder)
    own = exported(tmp_path, built, answers_to(built))
    (path,) = (path for path in own if path.name.startswith("samples_"))
    loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert {"strict-match", "flexible-extract"} == set(loaded["filter"])
    assert loaded["resps"][0] == [["<b>#### 0</b> \ufffd"]]
    scores = results_of(own)["results"]["gsm8k"]
    for filter_ in ("strict-match", "flexible-extract"):
        values = [one["exact_match"] for one in loaded if one["filter"] == filter_]
        assert mean(values) == pytest.approx(scores[f"exact_match,{filter_}"])


def test_the_same_results_give_the_same_files(arc_items: Path, tmp_path: Path) -> None:
    """A second export replaces the files of the first."""
    built = built_task("arc_challenge", arc_items)
    first = exported(tmp_path, built, answers_to(built))
    content = {path: path.read_bytes() for path in first}
    run = MergedRun(name="r", results=tmp_path / "results.h5", plan_document={"units": []})
    assert {path: path.read_bytes() for path in export_lm_eval([run], tmp_path / "exported")} == content
    assert sorted((tmp_path / "exported").rglob("*.json*")) == sorted(first)
