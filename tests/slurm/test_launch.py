"""Array orders on a real Slurm: what sbatch makes of them, what squeue says, what waits, what is cancelled."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hpcq.core.attempts import AttemptRecord, read_attempts
from hpcq.core.errors import SetupError
from hpcq.core.paths import RunLayout
from hpcq.core.work import State
from hpcq.launch.array_spec import ArrayOrder, Dependency, Submission
from hpcq.launch.job_status import unit_jobs
from hpcq.launch.slurm_launcher import SlurmLauncher
from hpcq.launch.submissions import read_submissions, record_lost
from hpcq.slurm import squeue
from hpcq.slurm.squeue import JobState
from tests.slurm.cluster import VirtualCluster, slurm_conf
from tests.slurm.rehearsal import array, layout_at, unit
from tests.slurm.waiting import ended, wait_for_states

NUMBERS = itertools.count()
"""Slurm still lists the jobs of the tests before, so that each test is a run of its own."""


@pytest.fixture
def layout(cluster: VirtualCluster, tmp_path: Path) -> Iterator[RunLayout]:
    """A run in a folder whose name a careless shell would trip over."""
    yield layout_at(tmp_path / "it's a run; $(exit 1)", name=f"run-{next(NUMBERS)}")
    cluster.forget_jobs()


def states_of(submission: Submission, states: dict[tuple[str, int], JobState]) -> list[State]:
    """States of a submission's elements, in order."""
    return [states[submission.job_id, index].state for index in range(len(submission.units))]


def most_at_once(records: Sequence[AttemptRecord]) -> int:
    """The largest number of attempts that ran at one time."""
    events = sorted([(r.start, 1) for r in records] + [(str(r.end), -1) for r in records])
    running = peak = 0
    for _, change in events:
        running += change
        peak = max(peak, running)
    return peak


def three_arrays(layout: RunLayout) -> list[ArrayOrder]:
    """Four units of which the third fails, four that each need one of them, and one that comes after all."""
    first = [unit(layout, f"first-{index}", refused=index == 2) for index in range(4)]
    second = [unit(layout, f"second-{index}") for index in range(4)]
    return [
        array(layout, "first", first, partition="h100", gpus_per_node=1, gres_type="h100", features="hopper"),
        array(layout, "second", second, depends_on=("first",), dependency=Dependency.AFTERCORR),
        array(layout, "last", [unit(layout, "last")], depends_on=("first", "second"), dependency=Dependency.AFTERANY),
    ]


def test_a_failure_cancels_only_what_needs_it_and_the_last_unit_runs_all_the_same(layout: RunLayout) -> None:
    """With aftercorr one failed element cancels its own follower alone, and afterany waits for all and then runs."""
    first, second, last = SlurmLauncher(layout).submit(three_arrays(layout))
    states = ended(layout)
    done = State.DONE
    assert states_of(first, states) == [done, done, State.FAILED, done]
    assert states_of(second, states) == [done, done, State.CANCELLED, done]
    assert states_of(last, states) == [done]
    assert states[second.job_id, 2].reason == "DependencyNeverSatisfied"
    attempts = read_attempts(layout.attempts)
    assert attempts["first-2"][0].outcome == "failed"
    assert [record.decision for record in attempts["first-2"]] == ["give up"]
    assert attempts["first-2"][0].reason == "This rehearsal was told to refuse its input."
    assert "second-2" not in attempts
    assert all(str(attempts["last"][0].start) >= str(attempts[f"second-{i}"][0].end) for i in (0, 1, 3))
    assert attempts["first-0"][0].node == states[first.job_id, 0].node
    assert attempts["first-0"][0].job_id == f"{first.job_id}_0"
    assert "UserInputError" in (layout.job_logs / "first-2.1.log").read_text()


@pytest.mark.parametrize("siblings", [1, 3])
def test_an_array_may_wait_for_one_element_of_another(layout: RunLayout, siblings: int) -> None:
    """Slurm cancels the followers of the element that failed alone; a single element is a plain job to submitit."""
    first = array(layout, "first", [unit(layout, f"a{index}", refused=index == 0) for index in range(siblings)])
    after = [
        array(
            layout,
            f"after-{element}",
            [unit(layout, f"b{element}-{shard}") for shard in range(2)],
            depends_on=("first",),
            dependency=Dependency.AFTEROK,
            element=element,
        )
        for element in range(siblings)
    ]
    _, *followers = SlurmLauncher(layout).submit([first, *after])
    states = ended(layout)
    for element, submission in enumerate(followers):
        expected = State.CANCELLED if element == 0 else State.DONE
        assert states_of(submission, states) == [expected, expected]


def test_two_hundred_units_are_one_array_throttled(layout: RunLayout) -> None:
    """200 units are one sbatch; one poll lists each of them; no more than the throttle run at once; all end well."""
    names = [f"unit-{index:03}" for index in range(200)]
    order = array(layout, "many", [unit(layout, name) for name in names], throttle=6)
    began = time.monotonic()
    (submission,) = SlurmLauncher(layout).submit([order])
    assert time.monotonic() - began < 10
    assert list(submission.units) == names
    early = squeue.poll(layout.name)
    assert set(early) == {(submission.job_id, index) for index in range(200)}
    states = ended(layout)
    assert Counter(states_of(submission, states)) == {State.DONE: 200}
    records = [record for records in read_attempts(layout.attempts).values() for record in records]
    assert {record.unit for record in records} == set(names)
    assert {record.outcome for record in records} == {"done"}
    assert 1 < most_at_once(records) <= 6
    assert {path.name for path in layout.job_logs.glob("*.log")} == {f"{name}.1.log" for name in names}


def test_cancelling_takes_elements_and_whole_jobs(layout: RunLayout) -> None:
    """Cancelled elements end as cancelled, their neighbours go on, and what has ended is left alone."""
    units = [unit(layout, f"unit-{index}", seconds=60 if index in (1, 2, 4) else 0.0) for index in range(5)]
    other = array(layout, "other", [unit(layout, "other", seconds=60)])
    some, whole = SlurmLauncher(layout).submit([array(layout, "some", units, throttle=5), other])
    wait_for_states(layout, State.DONE, 2)
    squeue.cancel([(some.job_id, 1), (some.job_id, 2), (some.job_id, 4), (some.job_id, 0), whole.job_id])
    states = ended(layout)
    cancelled = State.CANCELLED
    assert states_of(some, states) == [State.DONE, cancelled, cancelled, State.DONE, cancelled]
    assert states_of(whole, states) == [cancelled]


def test_a_unit_that_is_alone_in_its_array_is_cancelled_as_its_view_says(layout: RunLayout) -> None:
    """submitit makes a plain job of a single unit, whose element 0 Slurm does not know: the view names the job."""
    SlurmLauncher(layout).submit([array(layout, "alone", [unit(layout, "alone", seconds=60)])])
    squeue.cancel([unit_jobs(layout)["alone"].element])
    assert {job.state for job in ended(layout, timeout_s=30).values()} == {State.CANCELLED}


def test_of_a_unit_over_two_nodes_the_first_task_works(layout: RunLayout) -> None:
    """A unit of two nodes has one task on each and one attempt."""
    order = array(layout, "wide", [unit(layout, "wide")], partition="h100", nodes=2, gpus_per_node=8, gres_type="h100")
    (submission,) = SlurmLauncher(layout).submit([order])
    states = ended(layout)
    assert states[submission.job_id, 0].state is State.DONE
    assert states[submission.job_id, 0].node == "h100-[1-2]"
    assert len(read_attempts(layout.attempts)["wide"]) == 1


def test_a_lost_record_is_found_in_the_queue(layout: RunLayout) -> None:
    """A submission without a record is known again from the queue, with its units; another folder's is not taken."""
    order = array(layout, "pending", [unit(layout, f"unit-{i}") for i in range(3)], extra={"begin": "now+3600"})
    other = layout_at(layout.runs.parent.parent / "elsewhere", name=layout.name)
    (submission,) = SlurmLauncher(layout).submit([order])
    SlurmLauncher(other).submit([array(other, "pending", [unit(other, "unit")], extra={"begin": "now+3600"})])
    for path in layout.submissions.iterdir():
        path.unlink()
    (found,) = record_lost(layout, squeue.poll(layout.name))
    assert (found.job_id, found.units, found.folder) == (submission.job_id, submission.units, submission.folder)
    assert read_submissions(layout) == [found]
    assert record_lost(layout, squeue.poll(layout.name)) == []


def test_what_is_submitted_later_waits_for_what_was_submitted_before(layout: RunLayout) -> None:
    """Job ids of an earlier submission are dependencies of a later one."""
    (earlier,) = SlurmLauncher(layout).submit([array(layout, "slow", [unit(layout, "slow", seconds=2)])])
    later = array(layout, "later", [unit(layout, "later")], depends_on=("slow",), dependency=Dependency.AFTERANY)
    SlurmLauncher(layout).submit([later], {"slow": [earlier.job_id]})
    ended(layout)
    attempts = read_attempts(layout.attempts)
    assert attempts["later"][0].start >= str(attempts["slow"][0].end)


def test_a_refused_array_leaves_no_record(layout: RunLayout) -> None:
    """What sbatch refuses is told in one sentence with sbatch's own reason, and is not recorded."""
    order = array(layout, "bad", [unit(layout, "unit")], partition="nowhere")
    with pytest.raises(
        SetupError, match=r"sbatch refused array bad \(partition nowhere\): .*Invalid partition name specified\. "
    ):
        SlurmLauncher(layout).submit([order])
    assert read_submissions(layout) == []


def test_an_option_of_the_profile_cannot_become_a_command(layout: RunLayout, tmp_path: Path) -> None:
    """Blanks, quotes and dollars in an option reach Slurm as they are and no shell."""
    trap = tmp_path / "trap"
    value = f"it's $(touch {trap}) `touch {trap}` ; touch {trap}"
    order = array(layout, "odd", [unit(layout, "odd")], extra={"mail-user": value})
    SlurmLauncher(layout).submit([order])
    assert {job.state for job in ended(layout).values()} == {State.DONE}
    assert not trap.exists()


def test_a_silent_controller_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where slurmctld does not listen, a poll ends soon and says so."""
    configuration = tmp_path / "slurm.conf"
    configuration.write_text(
        "ClusterName=gone\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\nAuthType=auth/none\nCredType=cred/none\n"
    )
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    monkeypatch.setattr(squeue, "CLIENT_TIMEOUT_S", 3.0)
    with pytest.raises(SetupError, match=r"squeue"):
        squeue.poll("any")


def test_arrays_longer_than_the_cluster_allows_are_split_alike(plain_cluster: VirtualCluster, tmp_path: Path) -> None:
    """Where arrays have four elements at most, six units are two arrays, and followers wait for their own part."""
    with slurm_conf(plain_cluster):
        layout = layout_at(tmp_path, name="split")
        first = array(layout, "first", [unit(layout, f"first-{i}", refused=i == 5) for i in range(6)])
        second = array(
            layout,
            "second",
            [unit(layout, f"second-{i}") for i in range(6)],
            depends_on=("first",),
            dependency=Dependency.AFTERCORR,
        )
        last = array(layout, "last", [unit(layout, "last")], depends_on=("second",), dependency=Dependency.AFTERANY)
        submissions = SlurmLauncher(layout).submit([first, second, last])
        states = ended(layout)
    assert [(s.array, s.part, len(s.units)) for s in submissions] == [
        ("first", 0, 4),
        ("first", 1, 2),
        ("second", 0, 4),
        ("second", 1, 2),
        ("last", 0, 1),
    ]
    assert states_of(submissions[2], states) == [State.DONE] * 4
    assert states_of(submissions[3], states) == [State.DONE, State.CANCELLED]
    assert states_of(submissions[4], states) == [State.DONE]
    assert read_submissions(layout) == submissions
