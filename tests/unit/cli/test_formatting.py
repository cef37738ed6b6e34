"""Plain-text lines about tokens in plans and states."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.api import Run
from hpcq.cli.formatting import plan_lines, status_lines
from hpcq.core.work_records import UnitState
from hpcq.monitor.status import RunStatus, UnitStatus
from tests.unit.plan.test_experts import MANIFEST, PROFILE


def unit(asked: int | None, computed: int | None) -> UnitStatus:
    """An evaluation with these token counts."""
    return UnitStatus(
        id="evaluate.v", kind="evaluate", variant="v", state=UnitState.DONE, done=1, total=1, job_id=None, attempts=1,
        reason=None, phase=None, seconds=None, asked_tokens=asked, computed_tokens=computed,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("units", "lines"),
    [
        ([unit(1_000_000, 200_000), unit(200_000, 110_000), unit(None, None)],
         ["tokens: 1.2 M requested, 310 k computed (3.9x fewer)"]),
        ([unit(900, 900)], ["tokens: 900 requested, 900 computed"]),
        ([unit(0, 0)], []),
        ([unit(None, None)], []),
    ],
)  # fmt: skip
def test_status_shows_the_tokens_of_the_whole_run(units: list[UnitStatus], lines: list[str]) -> None:
    """One line if any unit has reported tokens; units without a report do not count as zero."""
    shown = status_lines(RunStatus(run="r", units=tuple(units)))
    assert [line for line in shown if line.startswith("tokens")] == lines


@pytest.mark.parametrize(
    ("tasks", "estimates"),
    [
        ('["winogrande"]', ["56 k requested, 35 k computed (1.6x fewer)"]),
        ('["winogrande", "leaderboard_musr"]',
         ["56 k requested, 35 k computed (1.6x fewer); without leaderboard_musr"]),
        ('["leaderboard_musr"]', ["unknown; without leaderboard_musr"]),
        ('["gsm8k"]', []),
    ],
)  # fmt: skip
def test_a_plan_shows_estimated_tokens_and_tasks_without_estimate(
    tasks: str, estimates: list[str], tmp_path: Path
) -> None:
    """One line for the run, marked as an estimate; none if all requests generate text."""
    manifest = tmp_path / "m.toml"
    manifest.write_text(
        '[run]\nname = "r"\n[cluster]\nprofile = "local"\n[[models]]\nid = "HuggingFaceTB/SmolLM2-135M"\n'
        f'[schemes]\nuse = ["bf16"]\n[tasks]\nuse = {tasks}\ndata = "hub"\n[evaluate]\nbackend = "accelerate"\n',
        encoding="utf-8",
    )
    shown = plan_lines(Run(manifest).plan())
    expected = [f"log-likelihood tokens (estimate): {estimate}" for estimate in estimates]
    assert [line for line in shown if line.startswith("log-likelihood tokens")] == expected


def test_a_plan_shows_expert_parallelism(tmp_path: Path) -> None:
    """The shape of a unit has the number of GPUs that share the experts, and of those that share weight matrices."""
    (tmp_path / "c.toml").write_text(PROFILE, encoding="utf-8")
    (tmp_path / "m.toml").write_text(MANIFEST, encoding="utf-8")
    (shown,) = [line for line in plan_lines(Run(tmp_path / "m.toml").plan(), with_units=True) if " TP8 " in line]
    assert " TP8 PP1 EP8 " in shown
