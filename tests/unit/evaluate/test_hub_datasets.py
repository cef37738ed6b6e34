"""Calls of `datasets.load_dataset` in definitions, and the catalog's list of their data sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.task
import lm_eval.tasks
import nltk
import pytest
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from hpcq.catalog.tasks import find_task, task_names
from hpcq.core.errors import SetupError, WorkerError
from hpcq.core.hub_cache import HubCache
from hpcq.core.work_records import Task
from hpcq.evaluate.hub_datasets import prepared_datasets
from hpcq.evaluate.lm_eval_tasks import build_tasks

DEFINITIONS = Path(lm_eval.tasks.__file__).parent
COMMIT = "a" * 40


def definitions(entry: Entry, index: dict[str, Entry]) -> Iterator[dict[str, Any]]:
    """Yield the definition of a task, or those of all leaves of a group or tag."""
    config = load_yaml(entry.yaml_path, resolve_func=False) if entry.yaml_path else {}
    members = sorted(entry.tags) if entry.kind is Kind.TAG else config["task"] if entry.kind is Kind.GROUP else ()
    for member in members:
        yield from definitions(index[member], index)
    if not members:
        yield config


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """A task with a prepared data set of two splits."""
    cache = HubCache(hub=tmp_path / "hub", prepared=tmp_path / "prepared")
    rows = datasets.Dataset.from_dict({"number": [1, 2]})
    prepared = datasets.DatasetDict({"train": rows, "test": rows})
    prepared.save_to_disk(str(cache.dataset("org/data", COMMIT, {"name": "main"})))
    return Task(name="gsm8k", data_revisions=(("org/data", COMMIT),), cache=cache)


@pytest.mark.parametrize("name", task_names())
def test_the_catalog_names_all_data_sets(name: str) -> None:
    """`datasets` are those of the installed definitions, none of which fixes a revision or another argument."""
    info = find_task(name)
    assert info
    if not info.folder:
        assert info.datasets == ()
        return
    index = lm_eval.tasks.TaskManager(include_path=str(DEFINITIONS / info.folder), include_defaults=False).task_index
    found = list(definitions(index[name], index))

    assert set(info.datasets) == {one["dataset_path"] for one in found}
    assert len(found) == info.num_subtasks
    assert not any(key in one for one in found for key in ("dataset_kwargs", "custom_dataset", "class"))


def test_calls_return_prepared_data(task: Task) -> None:
    """By position or by name, with arguments that select nothing, also if a definition has imported the function."""
    with prepared_datasets(task):
        imported = datasets.load_dataset
        first = datasets.load_dataset("org/data", "main", trust_remote_code=True, cache_dir=None)
        second = datasets.load_dataset(path="org/data", name="main", revision=COMMIT, data_dir=None)
        third = imported("org/data", name="main", revision="main")
        stream = datasets.load_dataset("org/data", "main", streaming=True)

    assert first["test"].to_list() == second["test"].to_list() == third["test"].to_list() == list(stream["test"])
    assert isinstance(stream, datasets.IterableDatasetDict)
    assert not first["train"].cache_files  # in memory: a lost file server cannot end the process
    assert datasets.load_dataset is not imported
    with prepared_datasets(task):
        assert imported("org/data", "main")["train"].to_list() == first["train"].to_list()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("org/data", "other"),
            rf"gsm8k: the data set 'org/data' at commit {COMMIT} \(name 'other'\) is not staged in ",
        ),
        (("org/none",), "gsm8k: its definition reads 'org/none', for which the run has no commit"),
        (("json",), "gsm8k: its definition reads 'json', for which the run has no commit"),
    ],
)
def test_what_is_not_staged_is_named(task: Task, arguments: tuple[str, ...], message: str) -> None:
    """Another configuration, repository or kind of data is a SetupError."""
    with prepared_datasets(task), pytest.raises(SetupError, match=message):
        datasets.load_dataset(*arguments)


def test_a_revision_of_the_definition_is_not_ignored(task: Task) -> None:
    """A definition that fixes another revision than the run's commit is refused."""
    with (
        prepared_datasets(task),
        pytest.raises(SetupError, match=r"reads revision 'v2' of 'org/data'.*data\.revisions"),
    ):
        datasets.load_dataset("org/data", "main", revision="v2")


def test_a_damaged_folder_is_named(task: Task) -> None:
    """A prepared data set without its files is a SetupError with the folder and the fix."""
    assert task.cache
    folder = task.cache.dataset("org/data", COMMIT, {"name": "main"})
    for file in folder.glob("*/*.arrow"):
        file.write_bytes(b"no table")

    with prepared_datasets(task), pytest.raises(SetupError, match=f"{folder}: the prepared data set cannot be read"):
        datasets.load_dataset("org/data", "main")


def test_another_lm_eval_is_refused(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """If lm-eval did not call `datasets.load_dataset` through the module, its calls would reach the hub."""
    monkeypatch.setattr(lm_eval.api.task, "datasets", None)

    with pytest.raises(WorkerError, match="use the versions of the lock file"), prepared_datasets(task):
        pass


def test_a_task_without_data_is_refused() -> None:
    """A task with neither a folder nor a cache is refused: the hub's main branch could change during the run."""
    with pytest.raises(
        SetupError, match=r"gsm8k: its definition reads 'openai/gsm8k', for which the run has no commit"
    ):
        build_tasks([Task(name="gsm8k")])


def test_missing_files_of_nltk_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """IFEval without NLTK's data is refused before its definition tries to download them."""
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path))
    monkeypatch.setattr(nltk.data, "path", [])

    with pytest.raises(
        SetupError, match=rf"ifeval: NLTK's sentence splitter .* is not in {tmp_path}/nltk_data.*hpcq stage"
    ):
        build_tasks([Task(name="ifeval", data_path=str(tmp_path))])


def test_a_definition_that_cannot_be_imported_is_a_setup_error(tmp_path: Path) -> None:
    """A package that a definition needs and the environment does not have is named."""
    with pytest.raises(SetupError, match=r"longbench_2wikimqa: .*jieba|longbench_2wikimqa: .*fuzzywuzzy"):
        build_tasks([Task(name="longbench_2wikimqa", cache=HubCache(hub=tmp_path, prepared=tmp_path))])
