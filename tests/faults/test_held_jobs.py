"""Jobs that Slurm holds: `hpcq resume` releases them, or does not wait for them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.command_line import REHEARSAL, Hpcq
from tests.slurm.cluster import PATIENT, VirtualCluster, slurm_conf

TIMEOUT_S = 900.0


@pytest.mark.slurm
def test_a_job_held_after_a_failed_launch_is_released_by_resume(core_python: Path, tmp_path: Path) -> None:
    """Slurm holds a job whose prolog failed; after the prolog is fixed, `resume` releases the job."""
    prolog, failure = tmp_path / "prolog", tmp_path / "failure"
    prolog.write_text(f"#!/bin/sh\n[ ! -e {failure} ]\n")
    prolog.chmod(0o755)
    failure.touch()
    with VirtualCluster(settings={**PATIENT, "Prolog": str(prolog)}) as cluster, slurm_conf(cluster):
        cluster.write_profile({"core": str(core_python)})
        hpcq = Hpcq(python=core_python, folder=tmp_path)
        manifest = hpcq.write(REHEARSAL)
        assert hpcq("submit", manifest, "-O", f"cluster.profile={cluster.profile}").code == 0
        wait_until_held(cluster)
        held = [
            unit for unit in hpcq("status", "rehearsal", "--json").document["units"] if "held" in str(unit["reason"])
        ]
        assert held
        assert {unit["state"] for unit in held} == {"pending"}
        failure.unlink()
        cluster.resume_nodes("drain")
        resumed = hpcq("resume", "rehearsal", "--wait", timeout_s=TIMEOUT_S)
        assert resumed.code == 0, resumed.err + resumed.out
        assert hpcq("merge", "rehearsal", "--json").document["missing"] == 0


@pytest.mark.slurm
def test_no_job_depends_on_a_held_job_of_a_finished_quantization(core_python: Path, tmp_path: Path) -> None:
    """If a checkpoint exists, neither its evaluations nor the merge wait for its job, even if that is requeued."""
    with VirtualCluster(settings=PATIENT) as cluster, slurm_conf(cluster):
        cluster.write_profile({"core": str(core_python)})
        hpcq = Hpcq(python=core_python, folder=tmp_path)
        manifest = hpcq.write(REHEARSAL)
        slow = ("-O", "evaluate.synthetic.load_seconds=299")
        assert hpcq("submit", manifest, "-O", f"cluster.profile={cluster.profile}", *slow).code == 0
        states: dict[str, str] = {}
        deadline_s = time.monotonic() + TIMEOUT_S
        while not states or set(states.values()) != {"done"}:
            assert time.monotonic() < deadline_s, states
            units = hpcq("status", "rehearsal", "--json").document["units"]
            states = {unit["job_id"]: unit["state"] for unit in units if unit["kind"] == "quantize"}
        (merge,) = (unit["job_id"] for unit in units if unit["kind"] == "merge")
        for job_id in states:
            cluster.call("scontrol", "requeuehold", job_id)
            # Slurm forgets this dependency if the job has ended before it is requeued, and keeps it otherwise.
            cluster.call("scontrol", "update", f"JobId={merge}", f"Dependency=afterany:{job_id}")
        assert hpcq("cancel", "rehearsal", "evaluate").code == 0
        resumed = hpcq("resume", "rehearsal", "-O", "evaluate.synthetic.load_seconds=0", "--wait", timeout_s=TIMEOUT_S)
        assert resumed.code == 0, resumed.err + resumed.out


def wait_until_held(cluster: VirtualCluster) -> None:
    """Return when Slurm holds all jobs that it tried to start."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while "held" not in (jobs := cluster.call("squeue", "--noheader", "--array", "--format=%T %r")) or (
        "RUNNING" in jobs or "CONFIGURING" in jobs
    ):
        assert time.monotonic() < deadline_s, jobs
        time.sleep(0.3)
