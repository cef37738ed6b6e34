"""Checkpoint locks held by Slurm jobs: a real Slurm reports whether the owner's job has ended."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.attempts import AttemptRecord, utc_now
from hpcq.core.outcomes import Launcher
from hpcq.quantize import checkpoint_lock
from hpcq.quantize.checkpoint_lock import LockOwner, is_job_over, lock_checkpoint
from tests.slurm.cluster import VirtualCluster

TIMEOUT_S = 600.0


def wait_until(condition: Callable[[], object]) -> None:
    """Return as soon as `condition` is true."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"still not true after {TIMEOUT_S:g} s"
        time.sleep(0.1)


def sleeping_job(cluster: VirtualCluster, *options: str) -> str:
    """Submit a job that sleeps, wait until it runs, and return its id."""
    job = cluster.call("sbatch", "--parsable", "--requeue", "--output=/dev/null", *options, "--wrap=sleep 600").strip()
    element = f"{job}_0" if options else job
    wait_until(lambda: is_running(cluster, element))
    return element


def is_running(cluster: VirtualCluster, job: str) -> bool:
    """Whether the job runs."""
    return "JobState=RUNNING" in cluster.call("scontrol", "--oneliner", "show", "job", job)


def owner_of(job: str, **changes: object) -> LockOwner:
    """Return a lock owner whose process is on an unknown host."""
    record = AttemptRecord(unit="u", attempt=1, job_id=job, node="h100-1", pid=1, start=utc_now())
    fields: dict[str, Any] = {"launcher": Launcher.SLURM, "process": "far-away boot 1 1", **changes}
    return dataclasses.replace(LockOwner.from_attempt(record), **fields)


@pytest.mark.parametrize("options", [(), ("--array=0",)])
def test_a_job_is_over_when_it_was_requeued_or_cancelled(cluster: VirtualCluster, options: tuple[str, ...]) -> None:
    """A running job is not over. Its previous run is over after a requeue, and its last run after scancel."""
    job = sleeping_job(cluster, *options)
    assert not is_job_over(job, 0)
    cluster.call("scontrol", "requeue", job)
    wait_until(lambda: is_job_over(job, 0))
    # Slurm starts it again after the credential of the first start has expired; earlier, the node may reject it.
    wait_until(lambda: is_running(cluster, job))
    assert is_job_over(job, 0)
    assert not is_job_over(job, 1)
    cluster.call("scancel", job)
    wait_until(lambda: is_job_over(job, 1))


@pytest.mark.usefixtures("cluster")
def test_a_job_that_slurm_has_forgotten_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job id that Slurm does not know belongs to a job that ended long ago. Without an answer, it is not over."""
    assert is_job_over("7654321", 0)
    monkeypatch.setenv("PATH", "/nowhere")
    assert not is_job_over("7654321", 0)


def test_the_lock_of_a_cancelled_job_is_taken_over(
    cluster: VirtualCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A waiting process gets the lock as soon as Slurm reports that the owner's job has ended, and not before."""
    monkeypatch.setattr(checkpoint_lock, "SLURM_QUERY_INTERVAL_S", 0.1)
    job = sleeping_job(cluster)
    claim = tmp_path / "x.claim" / "1"
    claim.mkdir(parents=True)
    (claim / "owner.json").write_text(json.dumps(dataclasses.asdict(owner_of(job))), encoding="utf-8")
    messages: list[str] = []
    has_lock = threading.Event()

    def wait() -> None:
        with lock_checkpoint(tmp_path / "x", owner_of("1", process="here boot 1 1"), messages.append):
            has_lock.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    wait_until(lambda: messages)
    assert messages[0] == f"waiting for job {job} on h100-1, which is creating this checkpoint"
    assert not has_lock.is_set()
    cluster.call("scancel", job)
    assert has_lock.wait(TIMEOUT_S)
    waiting.join(TIMEOUT_S)
