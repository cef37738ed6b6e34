"""The picture of a run: the store wins over the queue, the queue over an attempt's word."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.attempts import Attempt, AttemptRecord
from hpcq.core.paths import RunLayout
from hpcq.core.processes import identity
from hpcq.core.run_lock import hold
from hpcq.core.work import State
from hpcq.monitor.eta import run_progress
from hpcq.monitor.snapshot import JobView, RunStatus, UnitStatus, take_picture


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """An empty run."""
    return RunLayout(name="r", runs=tmp_path / "runs", checkpoints=tmp_path / "checkpoints", logs=tmp_path / "logs")


def unit(kind: str = "evaluate", checkpoint: str | None = None) -> dict[str, Any]:
    """A row of a plan's document."""
    return {
        "id": f"{kind}.v",
        "kind": kind,
        "variant": "v",
        "checkpoint": checkpoint,
        "address": "a",
        "depends_on": ["quantize.v"] if kind == "evaluate" else [],
    }


def record(layout: RunLayout, **changes: Any) -> None:
    """One attempt at the evaluation, on this host and alive unless changed."""
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


def state_of(layout: RunLayout, job: JobView | None = None) -> tuple[State, str | None]:
    """State and reason of the evaluation."""
    (seen,) = take_picture(layout, [unit()], {"evaluate.v": job} if job else {}).units
    return seen.state, seen.reason


def complete(layout: RunLayout, address: str = "a") -> None:
    """The worker's word that all is committed."""
    layout.unit_segments("evaluate.v").mkdir(parents=True, exist_ok=True)
    (layout.unit_segments("evaluate.v") / "complete.json").write_text(json.dumps({"address": address}))


def test_a_unit_that_was_never_handed_over_waits(layout: RunLayout) -> None:
    """Nothing on disk, nothing in the queue: waiting."""
    assert state_of(layout) == (State.WAITING, None)


def test_what_is_committed_is_done_whatever_the_queue_says(layout: RunLayout) -> None:
    """Slurm may run a finished unit again after a requeue; it is done all the same."""
    complete(layout)
    record(layout, outcome="failed", reason="later trouble")
    assert state_of(layout, JobView(job_id="7_0", state=State.RUNNING)) == (State.DONE, None)


def test_a_checkpoint_that_is_there_is_a_quantization_that_is_done(layout: RunLayout, tmp_path: Path) -> None:
    """Checkpoints are shared by runs: one made by another run counts."""
    checkpoint = tmp_path / "checkpoints" / "v"
    for expected in (State.WAITING, State.DONE):
        (seen,) = take_picture(layout, [unit("quantize", str(checkpoint))], {}).units
        assert seen.state is expected
        checkpoint.mkdir(parents=True, exist_ok=True)


def test_the_queue_wins_over_an_earlier_failure(layout: RunLayout) -> None:
    """A unit that failed and was queued again is pending, with Slurm's reason."""
    record(layout, outcome="failed", reason="out of memory")
    job = JobView(job_id="9_0", state=State.PENDING, reason="PENDING, Priority")
    assert state_of(layout, job) == (State.PENDING, "PENDING, Priority")


def test_a_failure_says_why_and_is_given_up(layout: RunLayout) -> None:
    """The worker's own sentence is shown, and another attempt is not made by itself."""
    record(layout, outcome="failed", reason="576 is not a multiple of 128", failure="bad input", decision="give up")
    (seen,) = take_picture(layout, [unit()], {}).units
    assert (seen.state, seen.reason, seen.failure) == (State.FAILED, "576 is not a multiple of 128", "bad input")
    assert seen.is_given_up
    assert seen.is_stopped


def test_tokens_of_all_attempts_are_added_up(layout: RunLayout) -> None:
    """Those that ended told their own; one that was killed told none, which is no zero."""
    (seen,) = take_picture(layout, [unit()], {}).units
    assert (seen.asked_tokens, seen.computed_tokens) == (None, None)
    for number, facts in enumerate([{"asked_tokens": 700, "computed_tokens": 200}, {}, {"asked_tokens": 30}], start=1):
        record(layout, attempt=number, facts=facts)
    picture = take_picture(layout, [unit(), unit("quantize", "nowhere")], {})
    assert [(one.asked_tokens, one.computed_tokens) for one in picture.units] == [(730, 200), (None, None)]
    document = picture.as_json()
    assert (document["asked_tokens"], document["computed_tokens"]) == (730, 200)
    assert document["units"][0]["asked_tokens"] == 730
    assert document["units"][1]["asked_tokens"] is None


def test_a_process_that_lives_on_this_host_is_running(layout: RunLayout) -> None:
    """Without a scheduler an attempt is running as long as its process is there."""
    record(layout)
    assert state_of(layout)[0] is State.RUNNING


def test_a_number_that_came_again_is_another_process(layout: RunLayout) -> None:
    """After a reboot a stranger may have the worker's number: the unit is not running, and may be tried again."""
    record(layout, process=str(identity(os.getpid())) + "1")
    (seen,) = take_picture(layout, [unit()], {}).units
    assert seen.state is State.FAILED
    assert not seen.is_stopped
    assert "without a word" in str(seen.reason)


def test_responses_of_another_evaluation_are_not_this_one_s(layout: RunLayout) -> None:
    """A finished evaluation with another address, or a damaged word of its end, is not done."""
    complete(layout, address="another")
    assert state_of(layout)[0] is State.WAITING
    (layout.unit_segments("evaluate.v") / "complete.json").write_text("{")
    assert state_of(layout)[0] is State.WAITING


def test_what_the_machine_lacked_may_be_tried_again(layout: RunLayout) -> None:
    """A full disk is a failure, and not given up: room may have been made."""
    record(layout, outcome="failed", reason="the disk is full", failure="full disk", decision="stop")
    (seen,) = take_picture(layout, [unit()], {}).units
    assert (seen.state, seen.is_given_up, seen.is_stopped) == (State.FAILED, False, True)


def test_a_result_that_was_removed_waits_to_be_made_again(layout: RunLayout) -> None:
    """An attempt that was done, without its result, is no failure."""
    record(layout, outcome="done")
    state, reason = state_of(layout)
    assert state is State.WAITING
    assert "makes it again" in str(reason)


def test_an_evaluation_whose_quantization_failed_is_cancelled_with_the_reason(
    layout: RunLayout, tmp_path: Path
) -> None:
    """Whoever was to run it, and also when Slurm has forgotten the job."""
    record(layout, unit="quantize.v", outcome="failed", reason="no room")
    units = [unit("quantize", str(tmp_path / "none")), unit()]
    for job in (None, JobView(job_id="3", state=None)):
        _, evaluation = take_picture(layout, units, {"evaluate.v": job} if job else {}).units
        assert (evaluation.state, evaluation.reason) == (State.CANCELLED, "quantize.v failed: no room")


def test_a_unit_that_was_interrupted_is_cancelled(layout: RunLayout) -> None:
    """Ctrl-C and `cancel` are no failures."""
    record(layout, outcome="interrupted", reason="interrupted from the keyboard")
    assert state_of(layout) == (State.CANCELLED, "interrupted from the keyboard")


def test_a_job_that_ended_before_its_unit_began_tells_its_last_words(layout: RunLayout, tmp_path: Path) -> None:
    """What the prologue said is the reason."""
    log = tmp_path / "log"
    log.write_text("hpcq: 'module load nope/1' failed on node a.\n\n")
    state, reason = state_of(layout, JobView(job_id="7", state=State.FAILED, reason="NonZeroExitCode", log=str(log)))
    assert state is State.FAILED
    assert reason == (
        f"job 7 ended before the unit began (NonZeroExitCode): hpcq: 'module load nope/1' failed on node a. ({log})"
    )


def test_a_run_that_somebody_works_on_is_running_between_two_units(layout: RunLayout) -> None:
    """While a command holds the run it is not over, though no unit runs at this instant."""
    with hold(layout):
        assert take_picture(layout, [unit()], {}).state is State.RUNNING
    assert take_picture(layout, [unit()], {}).state is State.WAITING


def test_a_job_that_slurm_knows_no_more_and_left_no_result_has_failed(layout: RunLayout) -> None:
    """The submission is on record, the queue has forgotten it, nothing was committed."""
    state, reason = state_of(layout, JobView(job_id="7_3", state=None))
    assert state is State.FAILED
    assert str(reason).startswith("job 7_3 ended")


def test_a_cancelled_job_is_cancelled(layout: RunLayout) -> None:
    """With the reason that Slurm gives, such as a dependency that can no longer be met."""
    job = JobView(job_id="7_0", state=State.CANCELLED, reason="CANCELLED, DependencyNeverSatisfied")
    assert state_of(layout, job) == (State.CANCELLED, "CANCELLED, DependencyNeverSatisfied")


def test_requests_done_are_counted_by_the_names_of_segments(layout: RunLayout) -> None:
    """Progress is a directory listing: what was there when the attempt began, and what the attempt committed."""
    from hpcq.store import RequestKey, Response, SegmentWriter

    record(layout, attempt=1, total=30, outcome="interrupted")
    record(layout, attempt=2, total=30, restored=20)
    with SegmentWriter(
        layout.unit_segments("evaluate.v"), attempt=2, addresses={"t": "a"}, provenance={}, flush_interval_s=60
    ) as writer:
        for document in range(4):
            writer.add(RequestKey("t", "1", document, 0, 0, "0" * 32), Response(loglikelihood=-1.0, is_greedy=True))
    (seen,) = take_picture(layout, [unit()], {}).units
    assert (seen.done, seen.total) == (24, 30)


def status(*units: UnitStatus) -> RunStatus:
    """A run of these units."""
    return RunStatus(run="r", units=units)


def evaluation(name: str, state: State, done: int | None, total: int | None, since: str | None = None) -> UnitStatus:
    """A unit that evaluates."""
    return UnitStatus(
        id=name, kind="evaluate", variant=name, state=state, done=done, total=total, job_id=None, attempts=1,
        reason=None, phase=None, seconds=None, running_since=since,
    )  # fmt: skip


def test_time_left_counts_units_that_have_not_begun() -> None:
    """One unit at 50 of 100 after 50 s, one waiting: 150 requests at one a second are left."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    since = (now - timedelta(seconds=50)).isoformat()
    progress = run_progress(
        status(evaluation("a", State.RUNNING, 50, 100, since), evaluation("b", State.WAITING, 0, None)), now
    )
    assert (progress.done, progress.total) == (50, 200)
    assert progress.seconds_left == pytest.approx(150)


def test_no_time_is_promised_before_anything_is_answered() -> None:
    """Without a rate there is no estimate."""
    since = datetime.now(UTC).isoformat()
    assert run_progress(status(evaluation("a", State.RUNNING, 0, 100, since))).seconds_left is None
    assert run_progress(status(evaluation("a", State.WAITING, 0, None))).total is None


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([State.DONE, State.DONE], State.DONE),
        ([State.DONE, State.WAITING], State.WAITING),
        ([State.FAILED, State.RUNNING], State.RUNNING),
        ([State.FAILED, State.PENDING], State.PENDING),
        ([State.FAILED, State.WAITING], State.FAILED),
        ([State.CANCELLED, State.DONE], State.CANCELLED),
    ],
)
def test_a_run_is_what_its_least_settled_unit_is(states: list[State], expected: State) -> None:
    """Running before pending before failed before cancelled before waiting before done."""
    assert status(*(evaluation(str(at), state, None, None) for at, state in enumerate(states))).state is expected
