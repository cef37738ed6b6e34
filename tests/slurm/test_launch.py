"""Slurm launcher on a real Slurm: submission of arrays, states in the queue, dependencies, cancellation."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hpcq.core.attempts import AttemptRecord, read_attempts
from hpcq.core.errors import SetupError
from hpcq.core.paths import RunLayout
from hpcq.core.work_records import UnitState
from hpcq.launch import job_status
from hpcq.launch.array_spec import ArraySpec, Dependency, Submission
from hpcq.launch.job_status import unit_jobs
from hpcq.launch.slurm_launcher import SlurmLauncher
from hpcq.launch.submissions import read_submissions, recover_unrecorded
from hpcq.slurm import client, squeue
from hpcq.slurm.jobs import SlurmJob
from tests.slurm.cluster import VirtualCluster, slurm_conf
from tests.slurm.synthetic_units import layout_at, synthetic_array, synthetic_unit
from tests.slurm.waiting import wait_for_states, wait_until_ended

NUMBERS = itertools.count()
"""Each test is a separate run, because Slurm still lists the jobs of previous tests."""


@pytest.fixture
def layout(cluster: VirtualCluster, tmp_path: Path) -> Iterator[RunLayout]:
    """A run in a folder whose name needs quoting in a shell."""
    yield layout_at(tmp_path / "it's a run; $(exit 1)", name=f"run-{next(NUMBERS)}")
    cluster.cancel_all_jobs()


def states_of(submission: Submission, states: dict[str, SlurmJob]) -> list[UnitState]:
    """Return the states of a submission's elements, in order."""
    return [states[submission.element(index)].state.unit_state for index in range(len(submission.units))]


def peak_concurrency(records: Sequence[AttemptRecord]) -> int:
    """Return the maximum number of attempts that ran at one time."""
    events = sorted([(r.start, 1) for r in records] + [(str(r.end), -1) for r in records])
    running = peak = 0
    for _, change in events:
        running += change
        peak = max(peak, running)
    return peak


def three_arrays(layout: RunLayout) -> list[ArraySpec]:
    """Return four units of which the third fails, four that each depend on one of them, and one that follows all."""
    first = [synthetic_unit(layout, f"first-{index}", rejects_input=index == 2) for index in range(4)]
    second = [synthetic_unit(layout, f"second-{index}") for index in range(4)]
    return [
        synthetic_array(layout, "first", first, partition="h100", gpus_per_node=1, gres_type="h100", features="hopper"),
        synthetic_array(layout, "second", second, depends_on=("first",), dependency=Dependency.AFTERCORR),
        synthetic_array(
            layout,
            "last",
            [synthetic_unit(layout, "last")],
            depends_on=("first", "second"),
            dependency=Dependency.AFTERANY,
        ),
    ]


def test_a_failure_cancels_only_its_dependents_and_the_last_unit_still_runs(layout: RunLayout) -> None:
    """With aftercorr, a failed element cancels only its own dependent. With afterany, a unit runs after all ended."""
    first, second, last = SlurmLauncher(layout).submit(three_arrays(layout))
    states = wait_until_ended(layout)
    done = UnitState.DONE
    assert states_of(first, states) == [done, done, UnitState.FAILED, done]
    assert states_of(second, states) == [done, done, UnitState.CANCELLED, done]
    assert states_of(last, states) == [done]
    assert states[second.element(2)].reason == "DependencyNeverSatisfied"
    attempts = read_attempts(layout.attempts)
    assert attempts["first-2"][0].outcome == "failed"
    assert [record.decision for record in attempts["first-2"]] == ["failed permanently"]
    assert attempts["first-2"][0].reason == "The synthetic backend rejects its input (reject_input)."
    assert "second-2" not in attempts
    assert all(str(attempts["last"][0].start) >= str(attempts[f"second-{i}"][0].end) for i in (0, 1, 3))
    assert attempts["first-0"][0].node == states[first.element(0)].node
    assert attempts["first-0"][0].job_id == f"{first.job_id}_0"
    assert "UserInputError" in (layout.job_logs / "first-2.1.log").read_text()


@pytest.mark.parametrize("siblings", [1, 3])
def test_an_array_may_wait_for_one_element_of_another(layout: RunLayout, siblings: int) -> None:
    """Slurm cancels only the dependents of the failed element. submitit submits a single element as a plain job."""
    first = synthetic_array(
        layout, "first", [synthetic_unit(layout, f"a{index}", rejects_input=index == 0) for index in range(siblings)]
    )
    after = [
        synthetic_array(
            layout,
            f"after-{element}",
            [synthetic_unit(layout, f"b{element}-{shard}") for shard in range(2)],
            depends_on=("first",),
            dependency=Dependency.AFTEROK,
            element=element,
        )
        for element in range(siblings)
    ]
    _, *dependents = SlurmLauncher(layout).submit([first, *after])
    states = wait_until_ended(layout)
    for element, submission in enumerate(dependents):
        expected = UnitState.CANCELLED if element == 0 else UnitState.DONE
        assert states_of(submission, states) == [expected, expected]


def test_two_hundred_units_are_one_array_throttled(layout: RunLayout) -> None:
    """200 units are one sbatch. One poll lists all of them, the throttle limits running elements, and all finish."""
    names = [f"unit-{index:03}" for index in range(200)]
    spec = synthetic_array(layout, "many", [synthetic_unit(layout, name) for name in names], throttle=6)
    (submission,) = SlurmLauncher(layout).submit([spec])
    assert list(submission.units) == names
    early = squeue.poll(layout.name)
    assert set(early) == {submission.element(index) for index in range(200)}
    states = wait_until_ended(layout)
    assert Counter(states_of(submission, states)) == {UnitState.DONE: 200}
    records = [record for records in read_attempts(layout.attempts).values() for record in records]
    assert {record.unit for record in records} == set(names)
    assert {record.outcome for record in records} == {"done"}
    assert 1 < peak_concurrency(records) <= 6
    assert {path.name for path in layout.job_logs.glob("*.log")} == {f"{name}.1.log" for name in names}


def test_cancel_accepts_elements_and_whole_jobs(layout: RunLayout) -> None:
    """Cancelled elements end as cancelled. Other elements continue, and ended elements do not change."""
    units = [synthetic_unit(layout, f"unit-{index}", seconds=3600 if index in (1, 2, 4) else 0.0) for index in range(5)]
    other = synthetic_array(layout, "other", [synthetic_unit(layout, "other", seconds=3600)])
    some, whole = SlurmLauncher(layout).submit([synthetic_array(layout, "some", units, throttle=5), other])
    wait_for_states(layout, UnitState.DONE, 2)
    squeue.cancel([*(some.element(index) for index in (1, 2, 4, 0)), whole.job_id])
    states = wait_until_ended(layout)
    cancelled = UnitState.CANCELLED
    assert states_of(some, states) == [UnitState.DONE, cancelled, cancelled, UnitState.DONE, cancelled]
    assert states_of(whole, states) == [cancelled]


def test_a_single_unit_is_cancelled_by_its_job_id(layout: RunLayout) -> None:
    """submitit submits a single unit as a plain job without element 0, so its job status names the job."""
    SlurmLauncher(layout).submit([synthetic_array(layout, "alone", [synthetic_unit(layout, "alone", seconds=3600)])])
    squeue.cancel([unit_jobs(layout)["alone"].job_id])
    assert {job.state.unit_state for job in wait_until_ended(layout).values()} == {UnitState.CANCELLED}


def test_a_unit_over_two_nodes_has_one_attempt(layout: RunLayout) -> None:
    """A unit of two nodes has one task on each node, and node 0 records the attempt."""
    spec = synthetic_array(
        layout, "wide", [synthetic_unit(layout, "wide")], partition="h100", nodes=2, gpus_per_node=8, gres_type="h100"
    )
    (submission,) = SlurmLauncher(layout).submit([spec])
    states = wait_until_ended(layout)
    assert states[submission.element(0)].state.unit_state is UnitState.DONE
    assert states[submission.element(0)].node == "h100-[1-2]"
    assert len(read_attempts(layout.attempts)["wide"]) == 1


def test_a_lost_record_is_recovered_from_the_queue(layout: RunLayout) -> None:
    """A submission without a record is recovered from the queue with its units. Those of another folder are ignored."""
    spec = synthetic_array(
        layout, "pending", [synthetic_unit(layout, f"unit-{i}") for i in range(3)], extra={"begin": "now+3600"}
    )
    other = layout_at(layout.runs.parent.parent / "elsewhere", name=layout.name)
    (submission,) = SlurmLauncher(layout).submit([spec])
    SlurmLauncher(other).submit(
        [synthetic_array(other, "pending", [synthetic_unit(other, "unit")], extra={"begin": "now+3600"})]
    )
    for path in layout.submissions.iterdir():
        path.unlink()
    (found,) = recover_unrecorded(layout, squeue.poll(layout.name))
    assert (found.job_id, found.units, found.folder) == (submission.job_id, submission.units, submission.folder)
    assert read_submissions(layout) == [found]
    assert recover_unrecorded(layout, squeue.poll(layout.name)) == []


def test_units_that_are_submitted_during_a_poll_are_pending_or_running(
    layout: RunLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A submission after squeue's answer and before its record is read, as by the merge, is not an unknown job."""
    spec = synthetic_array(layout, "late", [synthetic_unit(layout, "late")], extra={"begin": "now+3600"})
    poll = squeue.poll

    def poll_then_submit(run: str, timeout_s: float | None = None) -> dict[str, SlurmJob]:
        queue = poll(run, timeout_s)
        if not read_submissions(layout):
            SlurmLauncher(layout).submit([spec])
        return queue

    monkeypatch.setattr(job_status, "poll", poll_then_submit)
    assert unit_jobs(layout)["late"].is_live


def test_a_later_submission_can_depend_on_an_earlier_one(layout: RunLayout) -> None:
    """Job ids of an earlier submission are dependencies of a later one."""
    (earlier,) = SlurmLauncher(layout).submit(
        [synthetic_array(layout, "slow", [synthetic_unit(layout, "slow", seconds=2)])]
    )
    later = synthetic_array(
        layout, "later", [synthetic_unit(layout, "later")], depends_on=("slow",), dependency=Dependency.AFTERANY
    )
    SlurmLauncher(layout).submit([later], {"slow": [earlier.job_id]})
    wait_until_ended(layout)
    attempts = read_attempts(layout.attempts)
    assert attempts["later"][0].start >= str(attempts["slow"][0].end)


def test_a_rejected_array_leaves_no_record(layout: RunLayout) -> None:
    """If sbatch rejects an array, the message has sbatch's own reason, and nothing is recorded."""
    spec = synthetic_array(layout, "bad", [synthetic_unit(layout, "unit")], partition="nowhere")
    with pytest.raises(SetupError, match=r"sbatch rejected array bad \(partition nowhere\):\n") as error:
        SlurmLauncher(layout).submit([spec])
    assert "Invalid partition name specified\nCorrect gpu_classes.NAME.partition in the" in str(error.value)
    assert read_submissions(layout) == []


def test_an_option_of_the_profile_cannot_become_a_command(layout: RunLayout, tmp_path: Path) -> None:
    """Spaces, quotes and dollar signs in an option reach Slurm unchanged, and no shell evaluates them."""
    trap = tmp_path / "trap"
    value = f"it's $(touch {trap}) `touch {trap}` ; touch {trap}"
    spec = synthetic_array(layout, "odd", [synthetic_unit(layout, "odd")], extra={"mail-user": value})
    SlurmLauncher(layout).submit([spec])
    assert {job.state.unit_state for job in wait_until_ended(layout).values()} == {UnitState.DONE}
    assert not trap.exists()


def test_an_unreachable_controller_is_a_set_up_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If slurmctld does not listen, a poll fails within its timeout with a message."""
    configuration = tmp_path / "slurm.conf"
    configuration.write_text(
        "ClusterName=gone\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\nAuthType=auth/none\nCredType=cred/none\n"
    )
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    monkeypatch.setattr(client, "CLIENT_TIMEOUT_S", 3.0)
    with pytest.raises(SetupError, match=r"squeue"):
        squeue.poll("any")


def test_arrays_longer_than_max_array_size_are_split(plain_cluster: VirtualCluster, tmp_path: Path) -> None:
    """With a MaxArraySize of 4, six units are two arrays, and dependents wait for their own part."""
    with slurm_conf(plain_cluster):
        layout = layout_at(tmp_path, name="split")
        first = synthetic_array(
            layout, "first", [synthetic_unit(layout, f"first-{i}", rejects_input=i == 5) for i in range(6)]
        )
        second = synthetic_array(
            layout,
            "second",
            [synthetic_unit(layout, f"second-{i}") for i in range(6)],
            depends_on=("first",),
            dependency=Dependency.AFTERCORR,
        )
        last = synthetic_array(
            layout, "last", [synthetic_unit(layout, "last")], depends_on=("second",), dependency=Dependency.AFTERANY
        )
        submissions = SlurmLauncher(layout).submit([first, second, last])
        states = wait_until_ended(layout)
    assert [(s.array, s.part, len(s.units)) for s in submissions] == [
        ("first", 0, 4),
        ("first", 1, 2),
        ("second", 0, 4),
        ("second", 1, 2),
        ("last", 0, 1),
    ]
    assert states_of(submissions[2], states) == [UnitState.DONE] * 4
    assert states_of(submissions[3], states) == [UnitState.DONE, UnitState.CANCELLED]
    assert states_of(submissions[4], states) == [UnitState.DONE]
    assert read_submissions(layout) == submissions
