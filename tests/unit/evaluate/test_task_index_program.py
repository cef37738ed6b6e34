"""Entries of the index: what hpcq knows about a definition without importing lm-eval, and errors in a user's files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks._index import TaskIndex

from hpcq.evaluate.definition_index import DEFINITIONS
from hpcq.evaluate.task_index_program import entries, example_count
from hpcq.evaluate.user_definitions import DefinitionError, read_definitions


def described(name: str, *folders: str) -> dict[str, Any]:
    """Return the entry of a task of lm-eval, from the folders that it needs."""
    index = TaskIndex.build([DEFINITIONS / folder for folder in folders])
    return dict(entries(index, [name]))[name]


@pytest.mark.parametrize(
    ("name", "folder", "expected"),
    [
        ("piqa", "piqa", {"metric": "acc_norm", "datasets": ["baber/piqa"], "members": ["piqa"], "problem": ""}),
        ("wikitext", "wikitext", {"output_type": "loglikelihood_rolling", "lower_is_better": True}),
        ("triviaqa", "triviaqa", {"filter": "remove_whitespace", "output_type": "generate_until", "max_gen_toks": 256}),
        ("ai2_arc", "arc", {"children": ["arc_challenge", "arc_easy"], "is_group": True, "num_subtasks": 2}),
        ("leaderboard_gpqa", "leaderboard/gpqa", {"metric": "acc_norm", "num_subtasks": 3, "is_shuffled": True}),
        ("gpqa_main_n_shot", "gpqa/n_shot", {"is_shuffled": True}),
        ("ethics_virtue", "hendrycks_ethics", {"is_shuffled": False}),
        (
            "humaneval",
            "humaneval",
            {"runs_code": True, "problem": "", "metric": "pass@1", "filter": "create_test"},
        ),
        ("squad_completion", "squad_completion", {"datasets": ["hazyresearch/based-squad"], "problem": ""}),
    ],
)
def test_an_entry_describes_the_definition(name: str, folder: str, expected: dict[str, Any]) -> None:
    """Metric, filter, kind of requests, data sets, members."""
    found = described(name, folder)
    assert {key: found.get(key) for key in expected} == expected
    assert f"{folder}/" in found["definitions"][0]


@pytest.mark.parametrize(
    ("name", "folder", "problem"),
    [
        ("cruxeval_input", "cruxeval", "runs code that the model wrote by its own functions"),
        ("squadv2", "squadv2", "is defined by the Python class task.SQuAD2"),
        ("ruler_vt", "ruler", "the Python function vt_utils.get_vt_dataset makes its items"),
        ("arithmetic_1dc", "arithmetic", "files at a URL"),
    ],
)
def test_what_cannot_be_evaluated_has_a_reason(name: str, folder: str, problem: str) -> None:
    """It is refused at plan time."""
    assert problem in described(name, folder)["problem"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("task: [a\n", "bad.yaml:2: this is not valid YAML"),
        ("task: 1\n", "bad.yaml: `task` must be the name of the task"),
        ("task: a\ninclude: none.yaml\n", "none.yaml does not exist"),
        ("task: a\ninclude: ../outside.yaml\n", "outside.yaml is outside of"),
        ("- a\n", "lm-eval cannot read this definition"),
        ("group: a\ntask: [a]\n", "bad.yaml: the group 'a' contains itself (a > a)"),
        ("description: x\n", "no YAML file defines a task"),
    ],
)
def test_errors_in_a_users_file_name_it(tmp_path: Path, content: str, message: str) -> None:
    """lm-eval would skip the file."""
    (tmp_path / "outside.yaml").write_text("task: b\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "bad.yaml").write_text(content)

    with pytest.raises(DefinitionError, match=re.escape(message)):
        read_definitions([tmp_path / "mine"])


def test_an_undefined_member_of_a_group_is_named(tmp_path: Path) -> None:
    """It was "its definition names no data set", of a definition that does not exist."""
    (tmp_path / "group.yaml").write_text("group: a\ntask: [b]\naggregate_metric_list: [{metric: acc}]\n")
    assert dict(entries(read_definitions([tmp_path]), ["a"]))["a"]["problem"] == "its member 'b' is not a task"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("d.jsonl", "one.yaml: 'd.jsonl' in data_files may be {0}/one/d.jsonl or {0}/two/d.jsonl: give the files"),
        ("../d.jsonl", "one.yaml: the file '../d.jsonl' in data_files is outside of {0}: copy it there."),
        ("{1}/d.jsonl", "is outside of {0}: copy it there."),
        ("one/d.jsonl", None),
    ],
)
def test_a_definition_reads_one_file_of_its_own_folder(tmp_path: Path, file: str, message: str | None) -> None:
    """With two files of one name, the second task had the items of the first; no digest covers a file outside."""
    mine = tmp_path / "mine"
    for folder in (mine / "one", mine / "two", tmp_path):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "d.jsonl").write_text("{}\n")
    name = file.format(mine, tmp_path)
    (mine / "one.yaml").write_text(f"task: a\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {name}}}}}\n")
    if message is None:
        assert list(read_definitions([mine])) == ["a"]
        return
    with pytest.raises(DefinitionError, match=re.escape(message.format(mine, tmp_path))):
        read_definitions([mine])


def test_an_unknown_kind_of_requests_is_named(tmp_path: Path) -> None:
    """The unit failed on its node: "cannot use the first document"."""
    text = "task: a\ndataset_path: org/data\noutput_type: generate_untill\nmetric_list: []\n"
    (tmp_path / "a.yaml").write_text(text)
    problem = dict(entries(read_definitions([tmp_path]), ["a"]))["a"]["problem"]
    assert problem.startswith("its output_type 'generate_untill' is none of generate_until, ")


def test_files_of_own_definitions_are_checked(tmp_path: Path) -> None:
    """A missing file and an invalid line are errors of `plan`; the number of possible examples is known."""
    definition = {"task": "mine", "dataset_path": "json", "test_split": "test", "fewshot_split": "test"}
    definition |= {"dataset_kwargs": {"data_files": {"test": "mine.jsonl"}}, "doc_to_text": "q", "doc_to_target": "a"}
    (tmp_path / "mine.yaml").write_text(json.dumps(definition))
    data = tmp_path / "mine.jsonl"

    missing = f"the file 'mine.jsonl' in data_files is not in {tmp_path}: add it, or correct data_files."
    with pytest.raises(DefinitionError, match=re.escape(f"{tmp_path}/mine.yaml: {missing}")):
        read_definitions([tmp_path])
    data.write_text('{"q": "1", "a": "2"}\n{"q": 1, "a": "2"}\n')
    with pytest.raises(DefinitionError, match=re.escape(f"{data}:2: 'q' is a number, but a text in {data}:1.")):
        read_definitions([tmp_path])
    data.write_text('{"q": "1", "a": "2"}\n{"q": "1", "a": "2"}\n')
    own = read_definitions([tmp_path])
    [(_, row)] = entries(own, own)
    assert example_count(own, row, [tmp_path]) == 1
