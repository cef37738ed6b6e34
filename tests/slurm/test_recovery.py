"""Recovery on a real Slurm: a unit whose attempt ends continues, on other nodes or with less memory, or gives a reason.

The virtual cluster has no accounting (sacct).
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
from hpcq.core.work_records import EvaluateWork, UnitState
from hpcq.evaluate.request_set import build_request_set
from hpcq.launch.array_spec import ArraySpec, UnitSpec
from hpcq.launch.recovery.retry_policy import RetryPolicy
from hpcq.launch.slurm_launcher import SlurmLauncher
from hpcq.slurm import squeue
from hpcq.slurm.client import run_client
from hpcq.slurm.jobs import SlurmJob
from hpcq.store import count_rows, load_index
from tests.slurm.cluster import VirtualCluster, slurm_conf
from tests.slurm.processes import srun_processes, step_daemon
from tests.slurm.synthetic_units import layout_at, synthetic_array, synthetic_unit
from tests.slurm.waiting import wait_for, wait_until_ended

DOCUMENTS = 12
REQUESTS = 4 * DOCUMENTS
SECONDS = 24.0
"""Duration of a unit without interruption, two requests per second. A machine under load needs seconds to interrupt it.
"""

FLUSH_INTERVAL_S = 0.5
MAX_REPEATED = 10
"""Requests that one interruption may repeat: those of one flush interval, and of five seconds in which a machine under
load has not committed them."""

NUMBERS = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """Submitted units, by the names that tests give them."""

    layout: RunLayout
    units: Mapping[str, UnitSpec]
    jobs: Mapping[str, str]

    def records(self, name: str) -> list[AttemptRecord]:
        """Return the unit's attempts in order."""
        return read_attempts(self.layout.attempts).get(self.units[name].unit_id, [])

    def outcomes(self, name: str) -> list[tuple[str, str | None, str | None]]:
        """Return outcome, failure and decision of each attempt."""
        return [(one.outcome, one.failure, one.decision) for one in self.records(name)]

    def committed(self, name: str) -> int:
        """Return the number of rows in the unit's segments."""
        return count_rows(self.layout.unit_segments(self.units[name].unit_id))

    def wait_for_rows(self, *names: str) -> None:
        """Return when each of these units has committed rows."""
        for name in names:
            self.wait_for_any_rows(name)

    def wait_for_any_rows(self, *names: str) -> str:
        """Return the first of these units that has committed rows."""

        def found() -> list[str]:
            return [name for name in names if self.committed(name)]

        wait_for(f"one of {', '.join(names)} has committed rows", lambda: bool(found()))
        return found()[0]

    def computed(self, name: str) -> int:
        """Return how many requests were computed, including those whose answers were lost."""
        journal = (path.read_text() for path in journal_folder(self.layout).iterdir())
        work = evaluate_work(self.units[name])
        return sum(f" {work.variant.id} " in line for text in journal for line in text.splitlines())

    def answered(self, name: str) -> int:
        """Return how many requests have an answer on which all segments agree."""
        work = evaluate_work(self.units[name])
        addresses = build_request_set(work.tasks, is_synthetic=True).addresses(work)
        index = load_index([Path(work.segments_path)], expect=addresses)
        return len(index.responses) - len(index.conflicts)


def evaluate_work(one: UnitSpec) -> EvaluateWork:
    """Return the unit's work; all units here are evaluations."""
    assert isinstance(one.work, EvaluateWork)
    return one.work


def journal_folder(layout: RunLayout) -> Path:
    """Return the folder in which the synthetic backend logs every request that it computes."""
    return layout.runs.parent / "journal"


def array_of(
    layout: RunLayout, names: list[str], partition: str, *, seconds: float = SECONDS, **changes: Any
) -> ArraySpec:
    """Return an array of evaluations with the planner's ids, so that attempts find rows committed before."""
    journal_folder(layout).mkdir(parents=True, exist_ok=True)
    units = []
    for name in names:
        one = synthetic_unit(layout, name, seconds=seconds, documents=DOCUMENTS, flush_interval_s=FLUSH_INTERVAL_S)
        unit_id = f"evaluate.{evaluate_work(one).variant.id}"
        work = replace(evaluate_work(one), segments_path=str(layout.unit_segments(unit_id)))
        units.append(UnitSpec(unit_id=unit_id, work=work))
    spec = synthetic_array(layout, "-".join(names), units, partition=partition, time_limit_minutes=5)
    variables = (("HPCQ_SYNTHETIC_JOURNAL", str(journal_folder(layout))),)
    return replace(spec, environment=replace(spec.environment, variables=variables), **changes)


def submit(layout: RunLayout, *specs: ArraySpec) -> Submitted:
    """Submit arrays. A unit's name is the last part of its model's id."""
    units, jobs = {}, {}
    by_id = {one.unit_id: one for spec in specs for one in spec.units}
    for submission in SlurmLauncher(layout).submit(specs):
        for index, unit_id in enumerate(submission.units):
            name = evaluate_work(by_id[unit_id]).variant.model.id.rpartition("/")[2]
            units[name] = by_id[unit_id]
            jobs[name] = f"{submission.job_id}_{index}" if len(submission.units) > 1 else submission.job_id
    return Submitted(layout=layout, units=units, jobs=jobs)


def preempt(node: str) -> None:
    """Submit a short job of high priority that needs the whole node."""
    words = ("--partition=hi", f"--nodelist={node}", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    run_client("sbatch", *words)


def kill(*processes: int) -> None:
    """Send SIGKILL."""
    for process in processes:
        os.kill(process, signal.SIGKILL)


@pytest.fixture(autouse=True)
def _use_plain_cluster(plain_cluster: VirtualCluster) -> Iterator[None]:
    """Use the cluster that sends no user signal at preemption."""
    with slurm_conf(plain_cluster):
        yield


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """A separate run per test, because Slurm still lists the jobs of previous tests."""
    return layout_at(tmp_path, name=f"recovery-{next(NUMBERS)}")


@pytest.fixture(scope="module")
def long_units(plain_cluster: VirtualCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitted]:
    """Long units on nodes that the other tests do not use, submitted before the other tests start.

    The units `fits` and `never` run out of memory; `fits` only on its first OOM step. The units `a`, `b` and `c` need
    one whole node each; on h100-1 the set-up fails.
    """
    layout = layout_at(tmp_path_factory.mktemp("long-units"), name="long-units")
    fits = synthetic_unit(layout, "fits", documents=4, batch_size=8)
    fits = replace(fits, work=replace(evaluate_work(fits), synthetic_options=(("max_requests_per_batch", 2.0),)))
    never = synthetic_unit(layout, "never", runs_out_of_memory=True)
    out_of_memory = synthetic_array(layout, "out-of-memory", [fits, never], partition="rtx6000ada", memory_gib=0.5)
    broken = array_of(layout, ["a", "b", "c"], "h100", seconds=5.0, gpus_per_node=8, gres_type="h100")
    setup = ('if [ "$SLURMD_NODENAME" = h100-1 ]; then echo "no such mount" >&2; exit 9; fi',)
    with slurm_conf(plain_cluster):
        yield submit(
            layout,
            replace(out_of_memory, retries=RetryPolicy(max_memory_gib=1.0)),
            replace(
                broken,
                environment=replace(broken.environment, setup=setup),
                retries=RetryPolicy(max_excluded_nodes=1),
            ),
        )
        plain_cluster.cancel_all_jobs()


INTERRUPTIONS: Mapping[str, Callable[[Submitted, str], object]] = {
    "requeue": lambda units, name: run_client("scontrol", "requeue", units.jobs[name]),
    "term": lambda units, name: run_client("scancel", "--signal=TERM", units.jobs[name]),
    "usr2": lambda units, name: run_client("scancel", "--signal=USR2", units.jobs[name]),
    "worker": lambda units, name: kill(units.records(name)[-1].pid),
    "step": lambda units, name: kill(*srun_processes(units.jobs[name])),
    "daemon": lambda units, name: kill(step_daemon(units.jobs[name])),
    "preempted": lambda _units, _name: preempt("a6000-1"),
    "cancelled": lambda _units, _name: preempt("a100-1"),
}
"""How the unit of that name is interrupted."""


@pytest.fixture
def _cancelling_preemption(plain_cluster: VirtualCluster) -> Iterator[None]:
    """Preemption cancels jobs of the partition a100 instead of requeueing them."""
    plain_cluster.call("scontrol", "update", "PartitionName=a100", "PreemptMode=CANCEL")
    yield
    plain_cluster.call("scontrol", "update", "PartitionName=a100", "PreemptMode=REQUEUE")


@pytest.mark.usefixtures("long_units", "_cancelling_preemption")
def test_a_unit_continues_after_any_interruption(layout: RunLayout) -> None:
    """No committed answer is lost or, unless the worker is orphaned, computed again; few uncommitted ones are lost."""
    units = submit(
        layout,
        array_of(layout, ["requeue", "term", "usr2"], "h100"),
        array_of(layout, ["worker", "step", "daemon"], "h100"),
        array_of(layout, ["preempted"], "a6000"),
        array_of(layout, ["cancelled"], "a100"),
    )
    left = dict(INTERRUPTIONS)
    while left:
        name = units.wait_for_any_rows(*left)
        left.pop(name)(units, name)
    states = wait_until_ended(layout)
    assert {job.state.unit_state for job in states.values()} == {UnitState.DONE}
    assert min(job.restarts for job in states.values()) == 1
    for name in INTERRUPTIONS:
        *interrupted, last = units.records(name)
        assert interrupted, name
        assert ({one.decision for one in interrupted}, last.outcome) == ({"retry"}, "done"), name
        assert units.answered(name) == REQUESTS, name
        # A worker whose slurmstepd was killed notices it after seconds. Until then it works in parallel to the next.
        assert units.committed(name) == REQUESTS or name == "daemon", name
        assert units.computed(name) <= REQUESTS + MAX_REPEATED * len(interrupted), name
    failures = {name: units.records(name)[0].failure for name in INTERRUPTIONS}
    # A worker whose srun was killed gets SIGTERM when its job is requeued, and may record that as a preemption.
    failures.pop("step")
    assert failures == dict.fromkeys(failures, "preempted") | dict.fromkeys(("worker", "daemon"), "killed")


@pytest.mark.usefixtures("long_units")
def test_a_preemption_may_be_announced_by_the_user_signal(cluster: VirtualCluster, tmp_path: Path) -> None:
    """With preempt_send_user_signal, the unit continues, too."""
    with slurm_conf(cluster):
        layout = layout_at(tmp_path, name="announced")
        units = submit(layout, array_of(layout, ["one"], "a6000"))
        units.wait_for_rows("one")
        preempt("a6000-1")
        assert {job.state.unit_state for job in wait_until_ended(layout).values()} == {UnitState.DONE}
    first, *_, last = units.records("one")
    assert (first.reason, first.decision, last.outcome) == ("received SIGUSR2: preempted", "retry", "done")
    assert units.answered("one") == units.committed("one") == REQUESTS


@pytest.mark.usefixtures("long_units")
def test_signals_do_not_count_against_a_retry_limit(layout: RunLayout) -> None:
    """submitit alone would fail the job after three signals, which it takes for timeouts under a short time limit."""
    units = submit(layout, array_of(layout, ["one"], "a6000", seconds=2 * SECONDS, time_limit_minutes=2))
    for number in range(4):
        signal_attempt(units, number)
    assert {job.state.unit_state for job in wait_until_ended(layout).values()} == {UnitState.DONE}
    *interrupted, last = units.outcomes("one")
    assert interrupted[:4] == [("interrupted", "timeout", "retry")] * 4
    assert last == ("done", None, None)
    assert units.answered("one") == units.committed("one") == REQUESTS


def signal_attempt(units: Submitted, number: int) -> None:
    """Send USR2 to attempt `number + 1` once it has committed rows, and wait for its end."""

    def has_rows() -> bool:
        return count_rows(units.layout.unit_segments(units.units["one"].unit_id), number + 1) > 0

    wait_for(f"attempt {number + 1} has committed rows", has_rows)
    run_client("scancel", "--signal=USR2", units.jobs["one"])
    wait_for("the attempt has ended", lambda: units.records("one")[number].decision is not None)


@pytest.mark.usefixtures("long_units")
def test_a_budget_ends_a_loop(layout: RunLayout) -> None:
    """After the GPU-hours are used up, a unit that is killed or that Slurm requeues is not started again."""
    spec = array_of(layout, ["killed", "preempted"], "a6000", gpus_per_node=1, retries=RetryPolicy(gpu_hours=1e-6))
    slow = [
        replace(one, work=replace(evaluate_work(one), synthetic_options=(("request_seconds", 2.0),)))
        for one in spec.units
    ]
    units = submit(layout, replace(spec, units=tuple(slow)))
    units.wait_for_rows("killed", "preempted")
    kill(units.records("killed")[-1].pid)
    wait_for("the killed unit has failed", lambda: units.records("killed")[0].decision == "failed permanently")
    preempt("a6000-1")
    assert {job.state.unit_state for job in wait_until_ended(layout).values()} == {UnitState.FAILED}
    assert [one[1:] for one in units.outcomes("killed")] == [("killed", "failed permanently")]
    assert {one[1:] for one in units.outcomes("preempted")} == {("preempted", "failed permanently")}
    # If the unit does not end before Slurm requeues its job, the second attempt ends before it reads the requests.
    first, *refused = units.records("preempted")
    assert "the run has spent its 1e-06 GPU-hours" in str(first.reason)
    assert all((one.reason, one.total) == (first.reason, None) for one in refused)


def test_out_of_memory_takes_the_next_oom_step(long_units: Submitted) -> None:
    """The unit is retried with smaller batches, then with more host memory. It fails after the last step."""
    states_of(long_units, "fits", "never")
    assert [(one.oom_step, one.failure, one.decision) for one in long_units.records("fits")] == [
        (0, "out of memory", "retry smaller"),
        (1, None, None),
    ]
    assert [(one.oom_step, one.decision) for one in long_units.records("never")] == [
        (0, "retry smaller"),
        (1, "retry smaller"),
        (2, "retry smaller"),
        (3, "failed permanently"),
    ]
    assert "MinMemoryNode=512M" in run_client("scontrol", "show", "job", long_units.jobs["fits"])
    assert "MinMemoryNode=1G" in run_client("scontrol", "show", "job", long_units.jobs["never"])


def test_a_broken_node_is_excluded_after_its_first_fault(long_units: Submitted) -> None:
    """One attempt fails on the node whose set-up fails. The run uses other nodes from then on, and is done."""
    assert states_of(long_units, "a", "b", "c") == {UnitState.DONE}
    records = [record for name in "abc" for record in long_units.records(name)]
    (fault,) = [record for record in records if record.outcome == "failed"]
    assert (fault.node, fault.failure, fault.decision) == ("h100-1", "node fault", "retry elsewhere")
    assert str(fault.reason).startswith("it did not start: no such mount (")
    assert {record.node for record in records if record.outcome == "done"} == {"h100-2"}
    # Later submissions exclude the node from the start.
    later = submit(long_units.layout, array_of(long_units.layout, ["later"], "h100", retries=RetryPolicy()))
    assert "ExcNodeList=h100-1" in run_client("scontrol", "show", "job", later.jobs["later"])
    squeue.cancel([later.jobs["later"]])


def states_of(units: Submitted, *names: str) -> set[UnitState]:
    """Wait until the jobs of these units have ended, and return their states."""
    found: dict[str, SlurmJob] = {}

    def have_ended() -> bool:
        polled = squeue.poll(units.layout.name)
        found.update({name: polled[units.jobs[name]] for name in names})
        return all(job.state.unit_state not in (UnitState.PENDING, UnitState.RUNNING) for job in found.values())

    wait_for(f"{', '.join(names)} have ended", have_ended)
    return {job.state.unit_state for job in found.values()}


def test_a_unit_leaves_a_node_that_goes_down(
    layout: RunLayout, plain_cluster: VirtualCluster, long_units: Submitted
) -> None:
    """Slurm starts the unit on another node. The attempt on the first node is recorded as a node fault."""
    states_of(long_units, "a", "b", "c")
    units = submit(layout, array_of(layout, ["one"], "h100"))
    units.wait_for_rows("one")
    node = units.records("one")[0].node
    plain_cluster.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    try:
        assert {job.state.unit_state for job in wait_until_ended(layout).values()} == {UnitState.DONE}
    finally:
        plain_cluster.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
    first, *_, last = units.records("one")
    assert (first.failure, first.decision, last.outcome) == ("node fault", "retry elsewhere", "done")
    assert first.node != last.node
    assert units.answered("one") == units.committed("one") == REQUESTS
