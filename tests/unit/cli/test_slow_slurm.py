"""`submit --wait` while squeue is slow or fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import hpcq
from hpcq.api import Run, SubmitResult
from hpcq.cli.submit_and_wait import submit_and_wait
from hpcq.core.work_records import UnitKind, UnitState
from hpcq.launch.array_spec import Submission
from hpcq.monitor.status import RunStatus, UnitStatus
from hpcq.run.wait import LONGEST_INTERVAL_S, wait_until_ended
from tests.slurm.synthetic_units import layout_at


def status(state: UnitState, error: str | None = None) -> RunStatus:
    """Return the status of a run of one unit."""
    unit = UnitStatus(
        id="u",
        kind=UnitKind.EVALUATE,
        variant="v",
        state=state,
        done=None,
        total=None,
        job_id=None,
        attempts=0,
        reason=None,
        phase=None,
        seconds=None,
    )
    return RunStatus(run="mine", units=(unit,), slurm_error=error)


UNKNOWN = status(UnitState.WAITING, "`squeue` got no response from Slurm within 4 s.")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between queries, which take no time."""
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def test_queries_are_rarer_while_slurm_does_not_respond(pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """A busy controller gets one query per minute at most, and one warning says so."""
    answers = [UNKNOWN] * 8 + [status(UnitState.RUNNING), status(UnitState.DONE)]
    with caplog.at_level(logging.WARNING):
        assert wait_until_ended(status(UnitState.PENDING), lambda: answers.pop(0)).state is UnitState.DONE
    assert pauses == [
        2,
        4,
        8,
        16,
        32,
        LONGEST_INTERVAL_S,
        LONGEST_INTERVAL_S,
        LONGEST_INTERVAL_S,
        LONGEST_INTERVAL_S,
        2,
    ]
    assert caplog.text.count("Waiting until it does.") == 1


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """A run whose submission is accepted, after which squeue is too slow for `status`."""

    def make(answers: list[RunStatus]) -> Run:
        layout = layout_at(tmp_path, name="mine")
        accepted = Submission(array="a", part=0, job_id="17", units=("u",), folder=str(tmp_path), time="")
        result = SubmitResult(layout=layout, is_synthetic=True, arrays=(), submissions=(accepted,), status=UNKNOWN)

        def query(*, patient: bool) -> RunStatus:
            assert patient
            return replace(answers.pop(0))

        found: Any = SimpleNamespace(submit=lambda **_: result, status=query)
        monkeypatch.setattr(hpcq, "find", lambda _: found, raising=False)
        return cast("Run", found)

    return make


def test_what_was_accepted_is_shown_although_squeue_is_slow(
    run: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    """Observed: no job ids, "Run the missing units again", and exit code 1."""
    assert submit_and_wait(run([]), wait=False, as_json=False, yes=True) == 0
    printed = capsys.readouterr().out
    assert "job 17: a, 1 unit\n" in printed
    assert "again" not in printed


@pytest.mark.usefixtures("pauses")
def test_waiting_ends_although_squeue_takes_longer_than_status_allows(run: Callable[..., Run]) -> None:
    """While waiting, a call may take as long as those of other commands."""
    answers = [UNKNOWN, status(UnitState.RUNNING), status(UnitState.DONE)]
    assert submit_and_wait(run(answers), wait=True, as_json=False, yes=True) == 0
    assert not answers
