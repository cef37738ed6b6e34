"""A unit over several virtual nodes, whatever becomes of one of them: the reason, the next attempt, what remains."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hpcq.core.attempts import AttemptRecord
from hpcq.core.errors import SetupError
from hpcq.core.paths import RunLayout
from hpcq.core.work import State
from hpcq.launch.array_spec import ArrayOrder
from hpcq.launch.multinode.rendezvous import DEADLINE_VARIABLE, address_of
from hpcq.launch.slurm_launcher import STRAGGLERS_S, SlurmLauncher
from hpcq.slurm import squeue
from tests.slurm.cluster import VirtualCluster
from tests.slurm.processes import of_job
from tests.slurm.rehearsal import array, layout_at, unit
from tests.slurm.waiting import attempts_of, ended, wait_for

NUMBERS = itertools.count()
UNIT = "wide"
WITHIN_S = 60


@pytest.fixture
def layout(cluster: VirtualCluster, tmp_path: Path) -> Iterator[RunLayout]:
    """A run of its own: Slurm still lists the jobs of the tests before."""
    yield layout_at(tmp_path, name=f"nodes-{next(NUMBERS)}")
    cluster.forget_jobs()


def held_back(folder: Path, node: str, instead: str = "exec sleep 1000") -> Path:
    """An interpreter that never begins on `node`; a shell does something else there."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\n[ "$SLURMD_NODENAME" != {node} ] || {instead}\nexec {sys.executable} "$@"\n')
    path.chmod(0o700)
    return path


def wide(layout: RunLayout, *, seconds: float, python: Path | None = None, deadline_s: int = 60) -> ArrayOrder:
    """A unit over three nodes that answers for so many seconds, and whose nodes wait for each other for so long."""
    one = unit(layout, UNIT, seconds=seconds, documents=8, flush_interval_s=3600.0)
    order = array(layout, UNIT, [one], partition="all", nodes=3)
    variables = ((DEADLINE_VARIABLE, str(deadline_s)),)
    environment = replace(order.environment, python=str(python or sys.executable), variables=variables)
    return replace(order, environment=environment)


def submit(order: ArrayOrder, layout: RunLayout) -> str:
    """The job's id."""
    (submission,) = SlurmLauncher(layout).submit([order])
    return submission.job_id


def the_attempt(layout: RunLayout, phase: str) -> AttemptRecord:
    """The unit's first attempt, as soon as it is in a phase that begins so."""
    wait_for(
        f"the unit is {phase}",
        lambda: any((one.phase or "").startswith(phase) for one in attempts_of(layout, UNIT)[:1]),
    )
    return attempts_of(layout, UNIT)[0]


def wait_until_nothing_is_left(job: str) -> float:
    """Seconds until no process of the job is there."""
    began_s = time.monotonic()
    wait_for("no process of the job is left", lambda: not of_job(job), WITHIN_S)
    return time.monotonic() - began_s


def test_when_node_0_has_done_the_others_end(layout: RunLayout) -> None:
    """A unit over nodes whose names do not resolve is done in one attempt, and leaves neither a process nor a card."""
    job = submit(wide(layout, seconds=2), layout)
    record = the_attempt(layout, "answering")
    others = {one["SLURMD_NODENAME"] for _, one in of_job(job) if one.get("SLURM_PROCID") in ("1", "2")}
    assert len(others) == 2
    for node in (record.node, *others):
        with pytest.raises(socket.gaierror):
            socket.getaddrinfo(node, None)
    wait_for("the unit is done", lambda: attempts_of(layout, UNIT)[0].outcome == "done")
    wait_until_nothing_is_left(job)
    assert [job.state for job in ended(layout).values()] == [State.DONE]
    assert len(attempts_of(layout, UNIT)) == 1
    assert list(layout.meetings.iterdir()) == []


@pytest.mark.parametrize(("rank", "seconds"), [("0", 5), ("2", 15)])
def test_a_node_whose_process_is_killed_ends_the_unit_which_goes_on(
    layout: RunLayout, rank: str, seconds: float
) -> None:
    """The attempt ends as killed; the first node, where it is not the one, names it and commits what is answered."""
    job = submit(wide(layout, seconds=seconds), layout)
    first = the_attempt(layout, "answering")
    process, told = next(one for one in of_job(job) if one[1]["SLURM_PROCID"] == rank)
    os.kill(first.pid if rank == "0" else process, signal.SIGKILL)
    wait_for("the attempt has ended", lambda: attempts_of(layout, UNIT)[0].outcome == "failed", WITHIN_S)
    first = attempts_of(layout, UNIT)[0]
    assert first.failure == "killed"
    if rank != "0":
        assert first.reason == f"{told['SLURMD_NODENAME']}: its process ended without a word."
        assert first.added > 0
    states = ended(layout)
    assert [state.state for state in states.values()] == [State.DONE]
    assert [one.outcome for one in attempts_of(layout, UNIT)] == ["failed", "done"]
    wait_until_nothing_is_left(job)


@pytest.mark.parametrize(("instead", "deadline_s"), [("exec sleep 1000", 4), ("exit 127", STRAGGLERS_S + 5)])
def test_a_node_that_never_begins_is_named_and_avoided(
    layout: RunLayout, tmp_path: Path, instead: str, deadline_s: int
) -> None:
    """After the deadline, not before, the attempt ends as that node's fault, and the next one is done on others."""
    python = held_back(tmp_path, "a6000-1", instead)
    submit(wide(layout, seconds=0, python=python, deadline_s=deadline_s), layout)
    ended(layout)
    first, second = attempts_of(layout, UNIT)
    assert first.reason == f"nothing was heard of a process on a6000-1 within {deadline_s} s."
    assert (first.failure, first.faulty_node, first.decision) == ("node fault", "a6000-1", "elsewhere")
    assert second.outcome == "done"


def test_a_unit_that_is_cancelled_while_its_nodes_meet_leaves_nothing(layout: RunLayout, tmp_path: Path) -> None:
    """scancel before all are there ends those that are."""
    job = submit(wide(layout, seconds=0, python=held_back(tmp_path, "a6000-1")), layout)
    the_attempt(layout, "waiting for the other nodes")
    squeue.call("scancel", job)
    wait_until_nothing_is_left(job)
    assert attempts_of(layout, UNIT)[0].outcome == "interrupted"


def test_an_address_that_cannot_be_found_is_the_clusters_fault(cluster: VirtualCluster) -> None:
    """The sentence names the node and what Slurm says of it."""
    assert cluster
    address = address_of("a100-1")
    squeue.call("scontrol", "update", "NodeName=a100-1", "NodeAddr=there.invalid")
    try:
        with pytest.raises(SetupError, match=r"^a100-1: Slurm gives 'there\.invalid' as its address"):
            address_of("a100-1")
    finally:
        squeue.call("scontrol", "update", "NodeName=a100-1", f"NodeAddr={address}")


def test_what_another_node_says_of_its_end_is_the_reason(layout: RunLayout) -> None:
    """Out of memory on another node makes the whole unit smaller."""
    order = wide(layout, seconds=20)
    [one] = order.units
    work = replace(one.work, pace=(*one.work.pace, ("memory_gib_of_others", 1e9)))
    submit(replace(order, units=(replace(one, work=work),)), layout)
    wait_for("an attempt has ended", lambda: any(one.decision for one in attempts_of(layout, UNIT)), WITHIN_S)
    first = attempts_of(layout, UNIT)[0]
    assert (first.failure, first.decision) == ("out of memory", "smaller")
    assert str(first.reason).endswith(": MemoryError: no message")
    assert not str(first.reason).startswith(first.node)
    assert json.loads((layout.attempts / f"{UNIT}.1.json").read_text())["faulty_node"] != first.node
