"""Smallest differences that a plan's numbers of items can show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from hpcq.cli.detectable_lines import detectable_lines
from hpcq.manifest import load, resolve
from hpcq.plan.detectable import detectable_differences, items_needed
from hpcq.plan.planner import make_plan
from hpcq.plan.units import Plan

MANIFEST = """
[run]
name = "r"

[[models]]
id = "meta-llama/Llama-3.1-8B"

[schemes]
use = ["bf16", "fp8-dynamic"]

[tasks]
use = ["mmlu", "arc_challenge", "gsm8k"]
{more}
"""


def plan(folder: Path, more: str = "", overrides: Sequence[str] = ()) -> Plan:
    """Plan the manifest with further lines."""
    path = folder / "m.toml"
    path.write_text(MANIFEST.format(more=more))
    return make_plan(resolve(load(path, overrides)))


def points(found: Plan) -> dict[str, list[float]]:
    """Return the differences by task."""
    return {one.task: [each.points for each in one.differences] for one in detectable_differences(found)}


def test_the_differences_are_those_of_the_literature(tmp_path: Path) -> None:
    """MMLU shows 0.53 points at 5 % of changed items, ARC 1.8, GSM8K 2.4 at 10 %; one point needs 3,925 to 7,849."""
    found = points(plan(tmp_path))
    assert found["mmlu"][0] == pytest.approx(0.53, abs=0.005)
    assert found["arc_challenge"][0] == pytest.approx(1.8, abs=0.05)
    assert found["gsm8k"][1] == pytest.approx(2.4, abs=0.05)
    assert (items_needed(1.0, 5.0), items_needed(1.0, 10.0)) == (3925, 7849)


def test_a_limit_makes_them_larger(tmp_path: Path) -> None:
    """A quarter of the items shows twice the difference."""
    all_items, quarter = (points(plan(tmp_path, more))["arc_challenge"] for more in ("", "limit = 293"))
    assert quarter == pytest.approx([2 * one for one in all_items])


def test_tasks_with_an_unknown_number_of_items_are_left_out(tmp_path: Path) -> None:
    """Files of the user can have any number of items."""
    folder = tmp_path / "data" / "arc_challenge"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("{}\n")
    own = (f"tasks.data='{tmp_path / 'data'}'", "tasks.use=['arc_challenge']")
    assert points(plan(tmp_path, overrides=own)) == {}


def test_the_text_names_items_and_margin(tmp_path: Path) -> None:
    """One line per task, and what the margin needs; no line without tasks."""
    tasks = [one.as_json() for one in detectable_differences(plan(tmp_path))]
    lines = list(detectable_lines({"detectable": tasks, "margin_points": 0.5}, None))
    assert lines[2].split() == ["mmlu", "14042", "0.5", "0.7"]
    assert lines[-1].endswith("0.5 points (report.margin_points): 15698 or 31396")
    assert list(detectable_lines({"detectable": [], "margin_points": 0.5}, None)) == []
