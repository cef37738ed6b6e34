"""Subtasks and choices of the leaderboard's normalized scale, compared with lm-eval's definitions."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from hpcq.catalog.leaderboard import NORMALIZED_PARTS

GROUPS = {
    "leaderboard_bbh": "bbh_mc/_leaderboard_bbh.yaml",
    "leaderboard_musr": "musr/_musr.yaml",
    "leaderboard_math_hard": "math/_leaderboard_math.yaml",
}


@pytest.mark.parametrize("group", GROUPS)
def test_the_subtasks_are_lm_evals(group: str) -> None:
    """The parts of a task with subtasks are the members of lm-eval's group."""
    text = resources.files("lm_eval").joinpath("tasks/leaderboard", GROUPS[group]).read_text(encoding="utf-8")
    assert {part.task for part in NORMALIZED_PARTS[group]} == set(
        re.findall(r"^\s+- (leaderboard_\w+)", text, re.MULTILINE)
    )


def test_the_choices_of_bbh_are_lm_evals() -> None:
    """The score of guessing is 1 / the number of choices in the definition of each subtask."""
    folder = resources.files("lm_eval").joinpath("tasks/leaderboard/bbh_mc")
    for part in NORMALIZED_PARTS["leaderboard_bbh"]:
        text = folder.joinpath(f"{part.task.removeprefix('leaderboard_bbh_')}.yaml").read_text(encoding="utf-8")
        found = re.search(r"^doc_to_choice: \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
        assert found
        assert round(1 / part.bound) == found[1].count(",") + 1, part.task
