"""Claims of jobs: what a real Slurm says of the job that made one is the evidence that it is gone."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.attempts import AttemptRecord, now
from hpcq.quantize import checkpoint_lock
from hpcq.quantize.checkpoint_lock import Owner, claimed, job_is_over
from tests.slurm.cluster import VirtualCluster

PATIENCE_S = 60.0


def until(condition: Callable[[], object]) -> None:
    """Wait for something to come about."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.1)


def sleeper(cluster: VirtualCluster, *options: str) -> str:
    """A job that sleeps, and runs already."""
    job = cluster.call("sbatch", "--parsable", "--requeue", "--output=/dev/null", *options, "--wrap=sleep 600").strip()
    element = f"{job}_0" if options else job
    until(lambda: is_running(cluster, element))
    return element


def is_running(cluster: VirtualCluster, job: str) -> bool:
    """Whether Slurm says so."""
    return "JobState=RUNNING" in cluster.call("scontrol", "--oneliner", "show", "job", job)


def owner_of(job: str, **changes: object) -> Owner:
    """A claimant on a host of which nobody here knows anything."""
    owner = Owner.of(AttemptRecord(unit="u", attempt=1, job_id=job, node="h100-1", pid=1, start=now()))
    fields: dict[str, Any] = {"launcher": "slurm", "process": "far-away boot 1 1", **changes}
    return dataclasses.replace(owner, **fields)


@pytest.mark.parametrize("options", [(), ("--array=0",)])
def test_a_job_is_over_when_it_was_requeued_or_cancelled(cluster: VirtualCluster, options: tuple[str, ...]) -> None:
    """A running job is not over; its earlier run is, once it was requeued; and the last, once it was cancelled."""
    job = sleeper(cluster, *options)
    assert not job_is_over(job, 0)
    cluster.call("scontrol", "requeue", job)
    until(lambda: job_is_over(job, 0))
    cluster.call("scontrol", "update", f"jobid={job}", "StartTime=now")
    until(lambda: is_running(cluster, job))
    assert job_is_over(job, 0)
    assert not job_is_over(job, 1)
    cluster.call("scancel", job)
    until(lambda: job_is_over(job, 1))


@pytest.mark.usefixtures("cluster")
def test_a_job_that_slurm_has_forgotten_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id that Slurm does not know is that of a job which ended long ago; no answer at all is no evidence."""
    assert job_is_over("7654321", 0)
    monkeypatch.setenv("PATH", "/nowhere")
    assert not job_is_over("7654321", 0)


def test_the_claim_of_a_cancelled_job_is_taken_over(
    cluster: VirtualCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for a job goes on as soon as Slurm says that the job is gone, and not before."""
    monkeypatch.setattr(checkpoint_lock, "SLURM_INTERVAL_S", 0.1)
    job = sleeper(cluster)
    claim = tmp_path / "x.claim" / "1"
    claim.mkdir(parents=True)
    (claim / "owner.json").write_text(json.dumps(dataclasses.asdict(owner_of(job))), encoding="utf-8")
    told: list[str] = []
    turn = threading.Event()

    def wait() -> None:
        with claimed(tmp_path / "x", owner_of("1", process="here boot 1 1"), told.append):
            turn.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    until(lambda: told)
    assert told[0] == f"waiting for job {job} on h100-1, which makes this checkpoint"
    assert not turn.is_set()
    cluster.call("scancel", job)
    assert turn.wait(PATIENCE_S)
    waiting.join(PATIENCE_S)
