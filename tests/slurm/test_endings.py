"""Whatever ends an attempt on a real Slurm: the unit goes on where it was, elsewhere, with less, or says why not.

Nothing here has accounting (sacct), as the virtual cluster has none.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.attempts import AttemptRecord, read_attempts
from hpcq.core.paths import RunLayout
from hpcq.core.work import EvaluateWork, State
from hpcq.evaluate.request_set import questions_of
from hpcq.launch.array_spec import ArrayOrder, UnitOrder
from hpcq.launch.recovery.retry_policy import Policy
from hpcq.launch.slurm_launcher import SlurmLauncher
from hpcq.slurm import squeue
from hpcq.slurm.squeue import JobState
from hpcq.store import count_rows, load
from tests.slurm.cluster import VirtualCluster, slurm_conf
from tests.slurm.processes import srun_of, step_daemon
from tests.slurm.rehearsal import array, layout_at, unit
from tests.slurm.waiting import ended, wait_for

DOCUMENTS = 12
REQUESTS = 4 * DOCUMENTS
SECONDS = 9.0
"""What a unit takes undisturbed: five requests a second."""

FLUSH_INTERVAL_S = 0.5
LOST_AT_ONCE = 5
"""Requests of one flush interval, the one that is being computed, and one for a slow machine."""

NUMBERS = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """Units in the hands of Slurm, by the names that tests give them."""

    layout: RunLayout
    units: Mapping[str, UnitOrder]
    jobs: Mapping[str, str]

    def records(self, name: str) -> list[AttemptRecord]:
        """The unit's attempts so far, in order."""
        return read_attempts(self.layout.attempts).get(self.units[name].unit_id, [])

    def said(self, name: str) -> list[tuple[str, str | None, str | None]]:
        """Outcome, failure and decision of each."""
        return [(one.outcome, one.failure, one.decision) for one in self.records(name)]

    def committed(self, name: str) -> int:
        """Rows in the unit's segments."""
        return count_rows(self.layout.unit_segments(self.units[name].unit_id))

    def wait_for_rows(self, *names: str) -> None:
        """Return when each of these units has committed something."""
        for name in names:
            wait_for(f"{name} has committed something", lambda name=name: self.committed(name) > 0)  # type: ignore[misc]

    def computed(self, name: str) -> int:
        """How many requests were computed, those whose answers were lost included."""
        journal = (path.read_text() for path in journal_of(self.layout).iterdir())
        work = evaluation_of(self.units[name])
        return sum(f" {work.variant.id} " in line for text in journal for line in text.splitlines())

    def answered(self, name: str) -> int:
        """How many requests have an answer in the store on which all segments agree."""
        work = evaluation_of(self.units[name])
        addresses = questions_of(work.tasks, is_rehearsal=True).addresses(work)
        index = load([Path(work.segments_path)], expect=addresses)
        return len(index.responses) - len(index.conflicts)


def evaluation_of(one: UnitOrder) -> EvaluateWork:
    """All units here are evaluations."""
    assert isinstance(one.work, EvaluateWork)
    return one.work


def journal_of(layout: RunLayout) -> Path:
    """Where the rehearsal notes every request that it computes."""
    return layout.runs.parent / "journal"


def order_of(layout: RunLayout, names: list[str], partition: str, **changes: Any) -> ArrayOrder:
    """Evaluations, named as the planner does, so that an attempt finds what those before it have committed."""
    journal_of(layout).mkdir(parents=True, exist_ok=True)
    units = []
    for name in names:
        one = unit(layout, name, seconds=SECONDS, documents=DOCUMENTS, flush_interval_s=FLUSH_INTERVAL_S)
        unit_id = f"evaluate.{evaluation_of(one).variant.id}"
        work = replace(evaluation_of(one), segments_path=str(layout.unit_segments(unit_id)))
        units.append(UnitOrder(unit_id=unit_id, work=work))
    order = array(layout, "-".join(names), units, partition=partition, time_limit_minutes=5)
    variables = (("HPCQ_SYNTHETIC_JOURNAL", str(journal_of(layout))),)
    return replace(order, environment=replace(order.environment, variables=variables), **changes)


def submit(layout: RunLayout, *orders: ArrayOrder) -> Submitted:
    """Hand orders over; a unit's name is what its model's ends in."""
    units, jobs = {}, {}
    by_id = {one.unit_id: one for order in orders for one in order.units}
    for submission in SlurmLauncher(layout).submit(orders):
        for index, unit_id in enumerate(submission.units):
            name = evaluation_of(by_id[unit_id]).variant.model.id.rpartition("/")[2]
            units[name] = by_id[unit_id]
            jobs[name] = f"{submission.job_id}_{index}" if len(submission.units) > 1 else submission.job_id
    return Submitted(layout=layout, units=units, jobs=jobs)


def preempt(node: str) -> None:
    """A short job of high priority that needs the whole node."""
    words = ("--partition=hi", f"--nodelist={node}", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    squeue.call("sbatch", *words)


def kill(*processes: int) -> None:
    """SIGKILL."""
    for process in processes:
        os.kill(process, signal.SIGKILL)


@pytest.fixture(autouse=True)
def talking_to_the_plain_cluster(plain_cluster: VirtualCluster) -> Iterator[None]:
    """It sends no user signal at preemption."""
    with slurm_conf(plain_cluster):
        yield


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """A run of its own: Slurm still lists the jobs of the tests before."""
    return layout_at(tmp_path, name=f"endings-{next(NUMBERS)}")


@pytest.fixture(scope="module")
def meanwhile(plain_cluster: VirtualCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitted]:
    """Units that take their time on nodes that the other tests leave alone, handed over before those begin.

    fits and never run out of memory, the first on its first rung alone. a, b and c need a whole node each; on h100-1
    the set-up fails.
    """
    layout = layout_at(tmp_path_factory.mktemp("meanwhile"), name="meanwhile")
    fits = unit(layout, "fits", documents=4, batch_size=8)
    fits = replace(fits, work=replace(evaluation_of(fits), pace=(("most_at_once", 2.0),)))
    never = unit(layout, "never", fails=True)
    ladder = array(layout, "ladder", [fits, never], partition="rtx6000ada", memory_gib=0.5)
    broken = order_of(layout, ["a", "b", "c"], "h100", gpus_per_node=8, gres_type="h100")
    setup = ('if [ "$SLURMD_NODENAME" = h100-1 ]; then echo "no such mount" >&2; exit 9; fi',)
    with slurm_conf(plain_cluster):
        yield submit(
            layout,
            replace(ladder, retries=Policy(memory_gib_at_most=1.0)),
            replace(
                broken,
                environment=replace(broken.environment, setup=setup),
                retries=Policy(excluded_nodes_at_most=1),
            ),
        )
        plain_cluster.forget_jobs()


FATES: Mapping[str, Callable[[Submitted, str], object]] = {
    "requeue": lambda units, name: squeue.call("scontrol", "requeue", units.jobs[name]),
    "term": lambda units, name: squeue.call("scancel", "--signal=TERM", units.jobs[name]),
    "usr2": lambda units, name: squeue.call("scancel", "--signal=USR2", units.jobs[name]),
    "worker": lambda units, name: kill(units.records(name)[-1].pid),
    "step": lambda units, name: kill(*srun_of(units.jobs[name])),
    "daemon": lambda units, name: kill(step_daemon(units.jobs[name])),
    "preempted": lambda _units, _name: preempt("a6000-1"),
    "cancelled": lambda _units, _name: preempt("a100-1"),
}
"""What is done to the unit of that name."""


@pytest.mark.usefixtures("meanwhile")
def test_whatever_ends_an_attempt_the_unit_goes_on_where_it_was(
    layout: RunLayout, plain_cluster: VirtualCluster
) -> None:
    """No answer is lost, and no more are computed twice than one flush interval makes, whoever ended the attempt."""
    plain_cluster.call("scontrol", "update", "PartitionName=a100", "PreemptMode=CANCEL")
    units = submit(
        layout,
        order_of(layout, ["requeue", "term", "usr2"], "h100"),
        order_of(layout, ["worker", "step", "daemon"], "h100"),
        order_of(layout, ["preempted"], "a6000"),
        order_of(layout, ["cancelled"], "a100"),
    )
    for name, inflict in FATES.items():
        units.wait_for_rows(name)
        inflict(units, name)
    states = ended(layout)
    assert {job.state for job in states.values()} == {State.DONE}
    assert {job.restarts for job in states.values()} == {1}
    for name in FATES:
        first, last = units.records(name)
        assert (first.decision, last.outcome) == ("again", "done"), name
        assert units.answered(name) == REQUESTS, name
        assert units.computed(name) <= REQUESTS + LOST_AT_ONCE, name
    failures = {name: units.records(name)[0].failure for name in FATES}
    # A worker whose srun was killed is told to stop when its job is queued again, and takes that for a preemption.
    failures.pop("step")
    assert failures == dict.fromkeys(failures, "preempted") | dict.fromkeys(("worker", "daemon"), "killed")


@pytest.mark.usefixtures("meanwhile")
def test_a_preemption_may_be_announced_by_the_user_signal(cluster: VirtualCluster, tmp_path: Path) -> None:
    """Where the cluster sends it (preempt_send_user_signal) the unit goes on where it was, too."""
    with slurm_conf(cluster):
        layout = layout_at(tmp_path, name="announced")
        units = submit(layout, order_of(layout, ["one"], "a6000"))
        units.wait_for_rows("one")
        preempt("a6000-1")
        assert {job.state for job in ended(layout).values()} == {State.DONE}
    first, last = units.records("one")
    assert (first.reason, first.decision, last.outcome) == ("told to stop by SIGUSR2: preempted", "again", "done")
    assert (units.answered("one"), units.computed("one") <= REQUESTS + LOST_AT_ONCE) == (REQUESTS, True)


@pytest.mark.usefixtures("meanwhile")
def test_signals_do_not_use_anything_up(layout: RunLayout) -> None:
    """submitit would give up after three, each a timeout to it where the limit is under ten minutes."""
    units = submit(layout, order_of(layout, ["one"], "a6000", time_limit_minutes=2))
    for number in range(4):
        signal_attempt(units, number)
    assert {job.state for job in ended(layout).values()} == {State.DONE}
    assert units.said("one") == [("interrupted", "timeout", "again")] * 4 + [("done", None, None)]
    assert units.computed("one") <= REQUESTS + 4 * LOST_AT_ONCE


def signal_attempt(units: Submitted, number: int) -> None:
    """Send USR2 to the attempt that has `number` before it, once it has committed something, and see it end."""

    def has_rows() -> bool:
        return count_rows(units.layout.unit_segments(units.units["one"].unit_id), number + 1) > 0

    wait_for(f"attempt {number + 1} has committed something", has_rows)
    squeue.call("scancel", "--signal=USR2", units.jobs["one"])
    wait_for("it has noticed", lambda: units.records("one")[number].decision is not None)


@pytest.mark.usefixtures("meanwhile")
def test_a_budget_ends_a_loop(layout: RunLayout) -> None:
    """Once the GPU-hours are spent a unit that is killed, or that Slurm itself queues again, does not begin again."""
    order = order_of(layout, ["killed", "preempted"], "a6000", gpus_per_node=1, retries=Policy(gpu_hours=1e-6))
    slow = [replace(one, work=replace(evaluation_of(one), pace=(("request_seconds", 1.0),))) for one in order.units]
    units = submit(layout, replace(order, units=tuple(slow)))
    units.wait_for_rows("killed", "preempted")
    kill(units.records("killed")[-1].pid)
    wait_for("the killed one was given up", lambda: units.records("killed")[0].decision == "give up")
    preempt("a6000-1")
    assert {job.state for job in ended(layout).values()} == {State.FAILED}
    assert [one[1:] for one in units.said("killed")] == [("killed", "give up")]
    assert [one[1:] for one in units.said("preempted")] == [("preempted", "give up")] * 2
    first, refused = units.records("preempted")
    assert "the run has spent its 1e-06 GPU-hours" in str(first.reason)
    assert (refused.reason, refused.total) == (first.reason, None)


def test_out_of_memory_goes_down_the_ladder(meanwhile: Submitted) -> None:
    """With smaller batches, then with more host memory; and given up when there is no further rung."""
    states_of(meanwhile, "fits", "never")
    assert [(one.rung, one.failure, one.decision) for one in meanwhile.records("fits")] == [
        (0, "out of memory", "smaller"),
        (1, None, None),
    ]
    assert [(one.rung, one.decision) for one in meanwhile.records("never")] == [
        (0, "smaller"),
        (1, "smaller"),
        (2, "smaller"),
        (3, "give up"),
    ]
    assert "MinMemoryNode=512M" in squeue.call("scontrol", "show", "job", meanwhile.jobs["fits"])
    assert "MinMemoryNode=1G" in squeue.call("scontrol", "show", "job", meanwhile.jobs["never"])


def test_a_broken_node_is_left_after_its_first_fault(meanwhile: Submitted) -> None:
    """One attempt fails on the node whose set-up fails; nothing of the run is tried there again, and all ends well."""
    assert states_of(meanwhile, "a", "b", "c") == {State.DONE}
    records = [record for name in "abc" for record in meanwhile.records(name)]
    (fault,) = [record for record in records if record.outcome == "failed"]
    assert (fault.node, fault.failure, fault.decision) == ("h100-1", "node fault", "elsewhere")
    assert str(fault.reason).startswith("it did not begin: no such mount (")
    assert {record.node for record in records if record.outcome == "done"} == {"h100-2"}
    # And what is submitted later avoids it from the start.
    later = submit(meanwhile.layout, order_of(meanwhile.layout, ["later"], "h100", retries=Policy()))
    assert "ExcNodeList=h100-1" in squeue.call("scontrol", "show", "job", later.jobs["later"])
    squeue.cancel([later.jobs["later"]])


def states_of(units: Submitted, *names: str) -> set[State]:
    """How the jobs of these units have ended, when they have."""
    found: dict[str, JobState] = {}

    def have_ended() -> bool:
        polled = squeue.poll(units.layout.name)
        known = {f"{job}_{index}": state for (job, index), state in polled.items()}
        found.update({name: known[units.jobs[name]] for name in names})
        return all(state.state not in (State.PENDING, State.RUNNING) for state in found.values())

    wait_for(f"{', '.join(names)} have ended", have_ended, timeout_s=240)
    return {state.state for state in found.values()}


def test_a_unit_leaves_a_node_that_goes_down(
    layout: RunLayout, plain_cluster: VirtualCluster, meanwhile: Submitted
) -> None:
    """Slurm starts it again on another node, and the attempt that went down with the first is a node fault."""
    states_of(meanwhile, "a", "b", "c")
    units = submit(layout, order_of(layout, ["one"], "h100"))
    units.wait_for_rows("one")
    node = units.records("one")[0].node
    plain_cluster.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    try:
        assert {job.state for job in ended(layout).values()} == {State.DONE}
    finally:
        plain_cluster.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
    first, last = units.records("one")
    assert (first.failure, first.decision, last.outcome) == ("node fault", "elsewhere", "done")
    assert first.node != last.node
    assert units.computed("one") <= REQUESTS + LOST_AT_ONCE
