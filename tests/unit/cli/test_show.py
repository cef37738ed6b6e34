"""Lines of plain text: what plans and states say of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq import api
from hpcq.cli.formatting import plan_lines, status_lines
from hpcq.core.work import State
from hpcq.monitor.snapshot import RunStatus, UnitStatus


def unit(asked: int | None, computed: int | None) -> UnitStatus:
    """An evaluation that has counted so many tokens."""
    return UnitStatus(
        id="evaluate.v", kind="evaluate", variant="v", state=State.DONE, done=1, total=1, job_id=None, attempts=1,
        reason=None, phase=None, seconds=None, asked_tokens=asked, computed_tokens=computed,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("units", "lines"),
    [
        ([unit(1_000_000, 200_000), unit(200_000, 110_000), unit(None, None)],
         ["tokens: 1.2 M asked for, 310 k computed (3.9 times fewer)"]),
        ([unit(900, 900)], ["tokens: 900 asked for, 900 computed"]),
        ([unit(0, 0)], []),
        ([unit(None, None)], []),
    ],
)  # fmt: skip
def test_a_state_tells_the_tokens_of_the_whole_run(units: list[UnitStatus], lines: list[str]) -> None:
    """One line, where any unit has counted any; units that have not are no zeros."""
    shown = status_lines(RunStatus(run="r", units=tuple(units)))
    assert [line for line in shown if line.startswith("tokens")] == lines


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        ('["winogrande"]', ["56 k asked for, 35 k computed (1.6 times fewer)"]),
        ('["winogrande", "leaderboard_musr"]',
         ["56 k asked for, 35 k computed (1.6 times fewer); without leaderboard_musr"]),
        ('["leaderboard_musr"]', ["not known; without leaderboard_musr"]),
        ('["gsm8k"]', []),
    ],
)  # fmt: skip
def test_a_plan_tells_its_estimate_and_what_it_leaves_out(tasks: str, told: list[str], tmp_path: Path) -> None:
    """One line for the run, said to be an estimate; none where nothing but text is asked for."""
    manifest = tmp_path / "m.toml"
    manifest.write_text(
        '[run]\nname = "r"\n[cluster]\nprofile = "local"\n[[models]]\nid = "HuggingFaceTB/SmolLM2-135M"\n'
        f'[schemes]\nuse = ["bf16"]\n[tasks]\nuse = {tasks}\ndata = "hub"\n[evaluate]\nbackend = "accelerate"\n',
        encoding="utf-8",
    )
    shown = plan_lines(api.plan(manifest, ()))
    expected = [f"tokens of log-likelihoods, estimated: {words}" for words in told]
    assert [line for line in shown if line.startswith("tokens")] == expected
