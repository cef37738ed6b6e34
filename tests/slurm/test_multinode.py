"""Units over several virtual nodes when one node fails: the recorded reason, the next attempt, leftover processes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hpcq.core.attempts import AttemptRecord
from hpcq.core.errors import SetupError
from hpcq.core.paths import RunLayout
from hpcq.core.work_records import UnitState
from hpcq.evaluate.backends.synthetic import JOURNAL_VARIABLE
from hpcq.launch.array_spec import ArraySpec
from hpcq.launch.multinode.rendezvous import TIMEOUT_VARIABLE, node_address
from hpcq.launch.slurm_launcher import SRUN_WAIT_MARGIN_S, SlurmLauncher
from hpcq.slurm.client import run_client
from tests.slurm.cluster import VirtualCluster
from tests.slurm.processes import job_processes
from tests.slurm.synthetic_units import layout_at, synthetic_array, synthetic_unit
from tests.slurm.waiting import attempts_of, wait_for, wait_until_ended

NUMBERS = itertools.count()
UNIT = "wide"


@pytest.fixture
def layout(cluster: VirtualCluster, tmp_path: Path) -> Iterator[RunLayout]:
    """A separate run per test, because Slurm still lists the jobs of previous tests."""
    yield layout_at(tmp_path, name=f"nodes-{next(NUMBERS)}")
    cluster.cancel_all_jobs()


def blocked_interpreter(folder: Path, node: str, instead: str = "exec sleep 1000") -> Path:
    """Return an interpreter that does not start on `node`, where a shell runs `instead`."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\n[ "$SLURMD_NODENAME" != {node} ] || {instead}\nexec {sys.executable} "$@"\n')
    path.chmod(0o700)
    return path


def wide_array(layout: RunLayout, *, seconds: float, python: Path | None = None, timeout_s: int = 300) -> ArraySpec:
    """Return a unit over three nodes that answers for `seconds`, with a rendezvous timeout of `timeout_s`.

    Its answers are committed only at the end of an attempt.
    """
    one = synthetic_unit(layout, UNIT, seconds=seconds, documents=8, flush_interval_s=3600.0)
    spec = synthetic_array(layout, UNIT, [one], partition="all", nodes=3)
    journal(layout).mkdir(parents=True, exist_ok=True)
    variables = ((TIMEOUT_VARIABLE, str(timeout_s)), (JOURNAL_VARIABLE, str(journal(layout))))
    environment = replace(spec.environment, python=str(python or sys.executable), variables=variables)
    return replace(spec, environment=environment)


def journal(layout: RunLayout) -> Path:
    """Return the folder in which the synthetic backend logs every request that it answers."""
    return layout.runs.parent / "journal"


def submit(spec: ArraySpec, layout: RunLayout) -> str:
    """Submit the array and return its job id."""
    (submission,) = SlurmLauncher(layout).submit([spec])
    return submission.job_id


def wait_for_phase(layout: RunLayout, phase: str) -> AttemptRecord:
    """Wait until the phase of the unit's first attempt starts with `phase`, and return the attempt."""
    wait_for(
        f"the unit is {phase}",
        lambda: any((one.phase or "").startswith(phase) for one in attempts_of(layout, UNIT)[:1]),
    )
    return attempts_of(layout, UNIT)[0]


def wait_until_no_process(job: str) -> None:
    """Wait until no process of the job exists."""
    wait_for("no process of the job is left", lambda: not job_processes(job))


def test_the_other_nodes_exit_when_node_0_is_done(layout: RunLayout) -> None:
    """A unit over nodes whose names do not resolve is done in one attempt. No process or rendezvous file is left."""
    job = submit(wide_array(layout, seconds=15), layout)
    record = wait_for_phase(layout, "answering")
    others = {
        one.variables["SLURMD_NODENAME"] for one in job_processes(job) if one.variables["SLURM_PROCID"] in ("1", "2")
    }
    assert len(others) == 2
    for node in (record.node, *others):
        with pytest.raises(socket.gaierror):
            socket.getaddrinfo(node, None)
    wait_for("the attempt has ended", lambda: attempts_of(layout, UNIT)[0].outcome != "running")
    wait_until_no_process(job)
    assert [job.state.unit_state for job in wait_until_ended(layout).values()] == [UnitState.DONE]
    assert len(attempts_of(layout, UNIT)) == 1
    assert list(layout.rendezvous.iterdir()) == []


@pytest.mark.parametrize("rank", ["0", "2"])
def test_a_killed_process_on_one_node_ends_the_attempt_and_the_unit_is_retried(layout: RunLayout, rank: str) -> None:
    """The attempt fails as killed. If another node was killed, node 0 names it and commits its answers."""
    job = submit(wide_array(layout, seconds=15), layout)
    first = wait_for_phase(layout, "answering")
    wait_for("an answer", lambda: any(path.read_text() for path in journal(layout).iterdir()))
    process = next(one for one in job_processes(job) if one.variables["SLURM_PROCID"] == rank)
    os.kill(first.pid if rank == "0" else process.pid, signal.SIGKILL)
    wait_for("the attempt has ended", lambda: attempts_of(layout, UNIT)[0].outcome != "running")
    first = attempts_of(layout, UNIT)[0]
    assert (first.outcome, first.failure) == ("failed", "killed")
    if rank != "0":
        node = process.variables["SLURMD_NODENAME"]
        assert first.reason == f"{node}: worker process exited without reporting a reason."
        assert first.committed > 0
    states = wait_until_ended(layout)
    assert [job.state.unit_state for job in states.values()] == [UnitState.DONE]
    assert attempts_of(layout, UNIT)[-1].outcome == "done"
    wait_until_no_process(job)


@pytest.mark.parametrize(("instead", "timeout_s"), [("exec sleep 1000", 30), ("exit 127", SRUN_WAIT_MARGIN_S + 10)])
def test_a_node_that_never_starts_is_named_and_excluded(
    layout: RunLayout, tmp_path: Path, instead: str, timeout_s: int
) -> None:
    """The attempt fails as a fault of that node after the timeout, not before. The next attempt runs on other nodes."""
    python = blocked_interpreter(tmp_path, "a6000-1", instead)
    submit(wide_array(layout, seconds=0, python=python, timeout_s=timeout_s), layout)
    wait_until_ended(layout)
    first, *_, last = attempts_of(layout, UNIT)
    assert first.reason == f"no process on a6000-1 has reported within {timeout_s} s."
    assert (first.failure, first.faulty_node, first.decision) == ("node fault", "a6000-1", "retry elsewhere")
    assert last.outcome == "done"


def test_cancelling_a_unit_during_rendezvous_leaves_no_process(layout: RunLayout, tmp_path: Path) -> None:
    """Before all nodes have connected, scancel ends those that have."""
    job = submit(wide_array(layout, seconds=0, python=blocked_interpreter(tmp_path, "a6000-1")), layout)
    wait_for_phase(layout, "waiting for the other nodes")
    run_client("scancel", job)
    wait_until_no_process(job)
    assert attempts_of(layout, UNIT)[0].outcome == "interrupted"


def test_an_address_that_does_not_resolve_is_a_set_up_error(cluster: VirtualCluster) -> None:
    """The message has the node and the address that Slurm reports."""
    assert cluster
    address = node_address("a100-1")
    run_client("scontrol", "update", "NodeName=a100-1", "NodeAddr=there.invalid")
    try:
        with pytest.raises(SetupError, match=r"^a100-1: Slurm reports the address 'there\.invalid'"):
            node_address("a100-1")
    finally:
        run_client("scontrol", "update", "NodeName=a100-1", f"NodeAddr={address}")


def test_the_error_of_another_node_is_the_reason(layout: RunLayout) -> None:
    """If another node runs out of memory, the whole unit is retried with a smaller batch."""
    spec = wide_array(layout, seconds=20)
    [one] = spec.units
    work = replace(one.work, synthetic_options=(*one.work.synthetic_options, ("follower_memory_gib", 1e9)))
    submit(replace(spec, units=(replace(one, work=work),)), layout)
    wait_for("an attempt has ended", lambda: any(one.decision for one in attempts_of(layout, UNIT)))
    first = attempts_of(layout, UNIT)[0]
    assert (first.failure, first.decision) == ("out of memory", "retry smaller")
    assert str(first.reason).endswith(": MemoryError: no message")
    assert not str(first.reason).startswith(first.node)
    assert json.loads((layout.attempts / f"{UNIT}.1.json").read_text())["faulty_node"] != first.node
