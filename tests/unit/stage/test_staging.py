"""Staging of the real packages: content, idempotence, concurrency. Files already in the cache are not fetched again."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcq.catalog.packages import find_packaged_dataset, packaged_calibrations, packaged_tasks
from hpcq.core.errors import SetupError
from hpcq.core.paths import cache_folder
from hpcq.stage import stage_calibration, stage_dataset, stage_model
from tests.staged import staged_calibration, staged_dataset


def no_progress(line: str) -> None:
    """Ignore progress."""


@pytest.fixture(scope="module")
def packages() -> Path:
    """The folder of fetched files, complete."""
    for task in packaged_tasks():
        staged_dataset(task)
    for name in packaged_calibrations():
        staged_calibration(name)
    return cache_folder() / "packages"


@pytest.fixture
def cache(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new cache that has only the fetched files."""
    (tmp_path / "packages").symlink_to(packages)
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("task", packaged_tasks())
def test_splits_have_the_sizes_in_the_catalog(task: str) -> None:
    """Each split has the catalog's number of documents, and all documents have the same fields."""
    folder, dataset = stage_dataset(task, progress=no_progress), find_packaged_dataset(task)
    assert dataset is not None
    documents = {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in folder.iterdir()
    }
    assert {split: len(rows) for split, rows in documents.items()} == dict(dataset.splits)
    assert len({tuple(row) for rows in documents.values() for row in rows}) == 1


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("task", ["arc_challenge", "gsm8k", "hellaswag", "winogrande"])
def test_no_document_is_in_two_splits(task: str) -> None:
    """No few-shot example is also an evaluated document."""
    folder = stage_dataset(task, progress=no_progress)
    splits = [path.read_text(encoding="utf-8").splitlines() for path in folder.iterdir()]
    lines = [line for split in splits for line in split]
    assert len(splits) == 2
    assert len(lines) == len(set(lines))


def test_hellaswag_contexts_are_split_without_loss(cache: Path) -> None:
    """The two parts of a HellaSwag context join to the context, and the training split has both of its sources."""
    stage_dataset("hellaswag", progress=no_progress)
    train = (cache / "data" / "hellaswag" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    validation = (cache / "data" / "hellaswag" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line) for line in train + validation]
    assert all(f"{document['ctx_a']} {document['ctx_b']}".rstrip() == document["ctx"] for document in documents)
    assert sum(bool(document["ctx_b"]) for document in documents) == 32
    assert {bool(json.loads(line)["ctx_b"]) for line in train} == {True, False}


@pytest.mark.usefixtures("cache")
def test_calibration_text_is_distinct() -> None:
    """The calibration file has one object with a text per line, without duplicates."""
    lines = stage_calibration("boolq-passages", progress=no_progress).read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert len(texts) == len(set(texts)) == 2939


@pytest.mark.usefixtures("cache")
def test_staging_again_does_nothing() -> None:
    """A repeated call reports no progress and writes nothing."""
    lines: list[str] = []
    folder = stage_dataset("ifeval", progress=no_progress)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert stage_dataset("ifeval", progress=lines.append) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert lines == []


def _stage_arc(_: int) -> str:
    return str(stage_dataset("arc_challenge", progress=no_progress))


def test_processes_can_stage_concurrently(cache: Path) -> None:
    """Processes that stage the same data set concurrently all succeed and leave only a complete folder."""
    with multiprocessing.get_context("fork").Pool(4) as pool:
        folders = set(pool.map(_stage_arc, range(4)))
    assert folders == {str(cache / "data" / "arc_challenge")}
    assert sorted(path.name for path in (cache / "data").iterdir()) == ["arc_challenge"]
    assert sorted(path.name for path in (cache / "data" / "arc_challenge").iterdir()) == ["test.jsonl", "train.jsonl"]


@pytest.mark.parametrize(
    ("stage", "name", "available"),
    [
        (stage_model, "unknown/model", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        (stage_dataset, "mmlu", "arc_challenge"),
        (stage_calibration, "pile", "boolq-passages"),
    ],
)
def test_a_name_that_no_package_ships_is_refused(stage: Callable[..., Path], name: str, available: str) -> None:
    """A name that no package ships gives a one-line message with the name, the available names and the fix."""
    with pytest.raises(SetupError) as error:
        stage(name, progress=no_progress)
    message = str(error.value)
    assert "\n" not in message
    assert f"'{name}'" in message
    assert available in message
    assert "manifest" in message
