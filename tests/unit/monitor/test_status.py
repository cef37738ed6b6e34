"""Status of a run: the store takes precedence over Slurm, and Slurm over the attempt record."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.attempts import Attempt, AttemptRecord
from hpcq.core.failures import Failure
from hpcq.core.outcomes import Action, Outcome
from hpcq.core.paths import RunLayout
from hpcq.core.processes import identity
from hpcq.core.run_lock import run_lock
from hpcq.core.work_records import UnitState
from hpcq.monitor.eta import run_progress
from hpcq.monitor.status import RunStatus, UnitStatus, run_status
from hpcq.monitor.unit_job import UnitJobStatus
from hpcq.monitor.units import UnitRecord, read_unit
from hpcq.slurm.jobs import SlurmJob, SlurmState


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """An empty run."""
    return RunLayout(name="r", runs=tmp_path / "runs", checkpoints=tmp_path / "checkpoints", logs=tmp_path / "logs")


def unit(kind: str = "evaluate", checkpoint: str | None = None) -> UnitRecord:
    """Return a unit of a plan document."""
    row = {
        "id": f"{kind}.v",
        "kind": kind,
        "variant": "v",
        "checkpoint": checkpoint,
        "address": "a",
        "depends_on": ["quantize.v"] if kind == "evaluate" else [],
    }
    return read_unit(row)


def record(layout: RunLayout, **changes: Any) -> None:
    """Write an attempt of the evaluation, by default of a living process on this host."""
    fields = {
        "unit": "evaluate.v",
        "attempt": 1,
        "job_id": "7_0",
        "node": socket.gethostname(),
        "pid": os.getpid(),
        "process": identity(os.getpid()),
        "start": "2026-01-01T00:00:00.000+00:00",
        "total": 10,
    }
    Attempt(layout.attempts, AttemptRecord(**{**fields, **changes}))


def job_status(job_id: str, state: SlurmState, reason: str | None = None) -> UnitJobStatus:
    """Return the state of a job that Slurm knows."""
    return UnitJobStatus(job_id=job_id, array="a", job=SlurmJob(job_id=job_id, state=state, reason=reason))


def state_of(layout: RunLayout, job: UnitJobStatus | None = None) -> tuple[UnitState, str | None]:
    """Return state and reason of the evaluation."""
    (status,) = run_status(layout, [unit()], {"evaluate.v": job} if job else {}).units
    return status.state, status.reason


def complete(layout: RunLayout, address: str = "a") -> None:
    """Write the completion marker of the evaluation."""
    layout.unit_segments("evaluate.v").mkdir(parents=True, exist_ok=True)
    (layout.unit_segments("evaluate.v") / "complete.json").write_text(json.dumps({"address": address}))


def test_a_unit_that_was_never_submitted_is_waiting(layout: RunLayout) -> None:
    """Without a result, an attempt and a job, the unit is waiting."""
    assert state_of(layout) == (UnitState.WAITING, None)


def test_a_committed_unit_is_done_in_any_state_of_its_job(layout: RunLayout) -> None:
    """Slurm may run a finished unit again after a requeue; it is still done."""
    complete(layout)
    record(layout, outcome=Outcome.FAILED, reason="a later error")
    assert state_of(layout, job_status("7_0", SlurmState.RUNNING)) == (UnitState.DONE, None)


def test_a_quantization_with_a_checkpoint_is_done(layout: RunLayout, tmp_path: Path) -> None:
    """Checkpoints are shared by runs: one made by another run counts."""
    checkpoint = tmp_path / "checkpoints" / "v"
    for expected in (UnitState.WAITING, UnitState.DONE):
        (status,) = run_status(layout, [unit("quantize", str(checkpoint))], {}).units
        assert status.state is expected
        checkpoint.mkdir(parents=True, exist_ok=True)


def test_a_pending_job_takes_precedence_over_an_earlier_failure(layout: RunLayout) -> None:
    """A unit that failed and was submitted again is pending, with Slurm's reason."""
    record(layout, outcome=Outcome.FAILED, reason="out of memory")
    job = job_status("9_0", SlurmState.PENDING, "Priority")
    assert state_of(layout, job) == (UnitState.PENDING, "PENDING, Priority")


def test_a_permanent_failure_has_its_reason(layout: RunLayout) -> None:
    """The worker's message is shown, and the unit is not run again automatically."""
    record(
        layout,
        outcome=Outcome.FAILED,
        reason="576 is not a multiple of 128",
        failure=Failure.INVALID_INPUT,
        decision=Action.FAIL,
    )
    (status,) = run_status(layout, [unit()], {}).units
    assert (status.state, status.reason, status.failure) == (
        UnitState.FAILED,
        "576 is not a multiple of 128",
        "invalid input",
    )
    assert status.has_failed_permanently
    assert status.is_on_hold


def test_tokens_of_all_attempts_are_added_up(layout: RunLayout) -> None:
    """Attempts report their tokens when they end; a killed attempt has reported none, which is not zero."""
    (status,) = run_status(layout, [unit()], {}).units
    assert (status.asked_tokens, status.computed_tokens) == (None, None)
    for number, facts in enumerate([{"asked_tokens": 700, "computed_tokens": 200}, {}, {"asked_tokens": 30}], start=1):
        record(layout, attempt=number, facts=facts)
    run = run_status(layout, [unit(), unit("quantize", "nowhere")], {})
    assert [(one.asked_tokens, one.computed_tokens) for one in run.units] == [(730, 200), (None, None)]
    document = run.as_json()
    assert (document["asked_tokens"], document["computed_tokens"]) == (730, 200)
    assert document["units"][0]["asked_tokens"] == 730
    assert document["units"][1]["asked_tokens"] is None


def test_an_attempt_with_a_living_process_is_running(layout: RunLayout) -> None:
    """A local attempt is running while its process exists."""
    record(layout)
    assert state_of(layout)[0] is UnitState.RUNNING


def test_a_reused_process_id_is_another_process(layout: RunLayout) -> None:
    """After a reboot another process may have the worker's id: the unit is not running, and may run again."""
    record(layout, process=str(identity(os.getpid())) + "1")
    (status,) = run_status(layout, [unit()], {}).units
    assert status.state is UnitState.FAILED
    assert not status.is_on_hold
    assert "without reporting a reason" in str(status.reason)


def test_responses_of_another_evaluation_do_not_count(layout: RunLayout) -> None:
    """A completion marker with another address, or a damaged one, does not make the unit done."""
    complete(layout, address="another")
    assert state_of(layout)[0] is UnitState.WAITING
    (layout.unit_segments("evaluate.v") / "complete.json").write_text("{")
    assert state_of(layout)[0] is UnitState.WAITING


def test_a_full_disk_is_no_permanent_failure(layout: RunLayout) -> None:
    """The unit is on hold and not permanently failed, because space can be freed."""
    record(layout, outcome=Outcome.FAILED, reason="the disk is full", failure=Failure.FULL_DISK, decision=Action.HOLD)
    (status,) = run_status(layout, [unit()], {}).units
    assert (status.state, status.has_failed_permanently, status.is_on_hold) == (UnitState.FAILED, False, True)


def test_a_unit_whose_result_was_removed_is_waiting(layout: RunLayout) -> None:
    """A successful attempt without its result is not a failure."""
    record(layout, outcome=Outcome.DONE)
    state, reason = state_of(layout)
    assert state is UnitState.WAITING
    assert "create it again" in str(reason)


def test_an_evaluation_whose_quantization_failed_is_cancelled_with_the_reason(
    layout: RunLayout, tmp_path: Path
) -> None:
    """With either launcher, and also if Slurm no longer knows the job."""
    record(layout, unit="quantize.v", outcome=Outcome.FAILED, reason="no room")
    units = [unit("quantize", str(tmp_path / "none")), unit()]
    for job in (None, UnitJobStatus(job_id="3", array="a")):
        _, evaluation = run_status(layout, units, {"evaluate.v": job} if job else {}).units
        assert (evaluation.state, evaluation.reason) == (UnitState.CANCELLED, "quantize.v failed: no room")


def test_a_unit_that_was_interrupted_is_cancelled(layout: RunLayout) -> None:
    """Ctrl-C and `cancel` are not failures."""
    record(layout, outcome=Outcome.INTERRUPTED, reason="interrupted from the keyboard")
    assert state_of(layout) == (UnitState.CANCELLED, "interrupted from the keyboard")


def test_a_job_that_exited_before_its_unit_started_has_its_last_log_line(layout: RunLayout, tmp_path: Path) -> None:
    """The last line of the log is the reason."""
    log = tmp_path / "log"
    log.write_text("hpcq: 'module load nope/1' failed on node a.\n\n")
    state, reason = state_of(layout, replace(job_status("7", SlurmState.FAILED, "NonZeroExitCode"), log=str(log)))
    assert state is UnitState.FAILED
    assert reason == (
        "job 7 exited before the unit started (FAILED, NonZeroExitCode): "
        f"hpcq: 'module load nope/1' failed on node a. ({log})"
    )


def test_a_locked_run_is_running_between_two_units(layout: RunLayout) -> None:
    """While a command holds the lock, the run has not ended, even if no unit is running."""
    with run_lock(layout):
        assert run_status(layout, [unit()], {}).state is UnitState.RUNNING
    assert run_status(layout, [unit()], {}).state is UnitState.WAITING


def test_a_job_that_slurm_no_longer_knows_has_failed_without_a_result(layout: RunLayout) -> None:
    """The submission is recorded, Slurm no longer knows the job, and nothing was committed."""
    state, reason = state_of(layout, UnitJobStatus(job_id="7_3", array="a"))
    assert state is UnitState.FAILED
    assert str(reason).startswith("job 7_3 exited")


def test_a_cancelled_job_is_cancelled(layout: RunLayout) -> None:
    """The reason is Slurm's, such as a dependency that can never be satisfied."""
    job = job_status("7_0", SlurmState.CANCELLED, "DependencyNeverSatisfied")
    assert state_of(layout, job) == (UnitState.CANCELLED, "CANCELLED, DependencyNeverSatisfied")


def test_committed_requests_are_counted_from_segment_names(layout: RunLayout) -> None:
    """The count is that at the start of the attempt plus the requests in the names of its segments."""
    from hpcq.store import RequestKey, Response, SegmentWriter

    record(layout, attempt=1, total=30, outcome=Outcome.INTERRUPTED)
    record(layout, attempt=2, total=30, restored=20)
    with SegmentWriter(
        layout.unit_segments("evaluate.v"), attempt=2, addresses={"t": "a"}, provenance={}, flush_interval_s=60
    ) as writer:
        for document in range(4):
            writer.add(RequestKey("t", "1", document, 0, 0, "0" * 32), Response(loglikelihood=-1.0, is_greedy=True))
    (status,) = run_status(layout, [unit()], {}).units
    assert (status.done, status.total) == (24, 30)


def status(*units: UnitStatus) -> RunStatus:
    """Return the status of a run with these units."""
    return RunStatus(run="r", units=units)


def evaluation(
    name: str, state: UnitState, done: int | None, total: int | None, since: str | None = None
) -> UnitStatus:
    """Return the status of an evaluation."""
    return UnitStatus(
        id=name, kind="evaluate", variant=name, state=state, done=done, total=total, job_id=None, attempts=1,
        reason=None, phase=None, seconds=None, running_since=since,
    )  # fmt: skip


def test_time_left_includes_units_that_have_not_started() -> None:
    """One unit at 50 of 100 after 50 s, one waiting: 150 requests at one per second are left."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    since = (now - timedelta(seconds=50)).isoformat()
    progress = run_progress(
        status(evaluation("a", UnitState.RUNNING, 50, 100, since), evaluation("b", UnitState.WAITING, 0, None)), now
    )
    assert (progress.done, progress.total) == (50, 200)
    assert progress.seconds_left == pytest.approx(150)


def test_a_shard_without_requests_counts_as_none() -> None:
    """A task with fewer chunks than shards leaves shards without requests: their total is 0, not unknown."""
    progress = run_progress(status(evaluation("a", UnitState.DONE, 8, 8), evaluation("b", UnitState.DONE, 0, 0)))
    assert (progress.done, progress.total) == (8, 8)


def test_no_time_left_is_estimated_before_the_first_response() -> None:
    """Without a rate there is no estimate."""
    since = datetime.now(UTC).isoformat()
    assert run_progress(status(evaluation("a", UnitState.RUNNING, 0, 100, since))).seconds_left is None
    assert run_progress(status(evaluation("a", UnitState.WAITING, 0, None))).total is None


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([UnitState.DONE, UnitState.DONE], UnitState.DONE),
        ([UnitState.DONE, UnitState.WAITING], UnitState.WAITING),
        ([UnitState.FAILED, UnitState.RUNNING], UnitState.RUNNING),
        ([UnitState.FAILED, UnitState.PENDING], UnitState.PENDING),
        ([UnitState.FAILED, UnitState.WAITING], UnitState.FAILED),
        ([UnitState.CANCELLED, UnitState.DONE], UnitState.CANCELLED),
    ],
)
def test_the_state_of_a_run_is_the_first_of_its_units_states_in_order(
    states: list[UnitState], expected: UnitState
) -> None:
    """The order is running, pending, failed, cancelled, waiting, done."""
    assert status(*(evaluation(str(at), state, None, None) for at, state in enumerate(states))).state is expected
