"""Staging is whole, repeatable and quick, on the real packages; what was fetched for the cache is not fetched again."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcq.catalog.packages import calibration_names, find_items, packaged_tasks
from hpcq.core.cache import cache_folder
from hpcq.core.errors import SetupError
from hpcq.stage import stage_calibration, stage_items, stage_model


def quiet(line: str) -> None:
    """Take progress and do nothing."""


@pytest.fixture(scope="module")
def fetched() -> Path:
    """The user's own folder of fetched files, filled."""
    for task in packaged_tasks():
        stage_items(task, progress=quiet)
    for name in calibration_names():
        stage_calibration(name, progress=quiet)
    return cache_folder() / "packages"


@pytest.fixture
def cache(fetched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new cache where nothing but the fetched files is."""
    (tmp_path / "packages").symlink_to(fetched)
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("task", packaged_tasks())
def test_splits_hold_what_the_catalog_states(task: str) -> None:
    """Each split has the stated number of documents, and all of its documents have the same fields."""
    folder, items = stage_items(task, progress=quiet), find_items(task)
    assert items is not None
    documents = {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in folder.iterdir()
    }
    assert {split: len(rows) for split, rows in documents.items()} == dict(items.splits)
    assert len({tuple(row) for rows in documents.values() for row in rows}) == 1


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("task", ["arc_challenge", "gsm8k", "hellaswag", "winogrande"])
def test_no_document_is_in_two_splits(task: str) -> None:
    """No few-shot example is also asked."""
    splits = [path.read_text(encoding="utf-8").splitlines() for path in stage_items(task, progress=quiet).iterdir()]
    lines = [line for split in splits for line in split]
    assert len(splits) == 2
    assert len(lines) == len(set(lines))


def test_hellaswag_contexts_are_cut_without_loss(cache: Path) -> None:
    """The two parts of a HellaSwag context give the context again, and both of its sources are held out."""
    stage_items("hellaswag", progress=quiet)
    held_out = (cache / "data" / "hellaswag" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    asked = (cache / "data" / "hellaswag" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line) for line in held_out + asked]
    assert all(f"{one['ctx_a']} {one['ctx_b']}".rstrip() == one["ctx"] for one in documents)
    assert sum(bool(one["ctx_b"]) for one in documents) == 32
    assert {bool(json.loads(line)["ctx_b"]) for line in held_out} == {True, False}


@pytest.mark.usefixtures("cache")
def test_calibration_text_is_distinct() -> None:
    """The calibration file has one object with a text a line, and no text twice."""
    lines = stage_calibration("boolq-passages", progress=quiet).read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert len(texts) == len(set(texts)) == 2939


@pytest.mark.usefixtures("cache")
def test_staging_again_does_nothing() -> None:
    """The second time, nothing is said and nothing is written."""
    said: list[str] = []
    folder = stage_items("ifeval", progress=quiet)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert stage_items("ifeval", progress=said.append) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert said == []


def _stage_arc(_: int) -> str:
    return str(stage_items("arc_challenge", progress=quiet))


def test_two_may_stage_at_once(cache: Path) -> None:
    """Workers that stage the same thing at the same time all succeed, and leave one whole folder and no litter."""
    with multiprocessing.get_context("fork").Pool(4) as pool:
        folders = set(pool.map(_stage_arc, range(4)))
    assert folders == {str(cache / "data" / "arc_challenge")}
    assert sorted(path.name for path in (cache / "data").iterdir()) == ["arc_challenge"]
    assert sorted(path.name for path in (cache / "data" / "arc_challenge").iterdir()) == ["test.jsonl", "train.jsonl"]


@pytest.mark.parametrize(
    ("stage", "name", "offered"),
    [
        (stage_model, "nobody/nothing", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        (stage_items, "mmlu", "arc_challenge"),
        (stage_calibration, "pile", "boolq-passages"),
    ],
)
def test_what_no_package_ships_is_refused(stage: Callable[..., Path], name: str, offered: str) -> None:
    """A name that no package ships gives one sentence with the name, what there is, and the cure."""
    with pytest.raises(SetupError) as fault:
        stage(name, progress=quiet)
    sentence = str(fault.value)
    assert "\n" not in sentence
    assert f"'{name}'" in sentence
    assert offered in sentence
    assert "manifest" in sentence
