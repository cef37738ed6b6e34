"""What Slurm itself takes out of the running comes back when its user says so."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.command_line import REHEARSAL, Hpcq
from tests.slurm.cluster import VirtualCluster, slurm_conf

TIMEOUT_S = 120.0


@pytest.mark.slurm
def test_a_unit_that_slurm_holds_because_it_could_not_start_it_is_released_by_resume(
    core_python: Path, tmp_path: Path
) -> None:
    """A prolog that fails has Slurm hold the job for ever; after the cure `resume` lets it go on."""
    prolog, sick = tmp_path / "prolog", tmp_path / "sick"
    prolog.write_text(f"#!/bin/sh\n[ ! -e {sick} ]\n")
    prolog.chmod(0o755)
    sick.touch()
    with VirtualCluster(settings={"Prolog": str(prolog)}) as cluster, slurm_conf(cluster):
        cluster.write_profile({"core": str(core_python)})
        hpcq = Hpcq(python=core_python, folder=tmp_path)
        manifest = hpcq.write(REHEARSAL)
        assert hpcq("submit", manifest, "-O", f"cluster.profile={cluster.profile}").code == 0
        wait_for_held(cluster)
        held = [
            unit for unit in hpcq("status", "rehearsal", "--json").document["units"] if "held" in str(unit["reason"])
        ]
        assert held
        assert {unit["state"] for unit in held} == {"pending"}
        sick.unlink()
        cluster.resume_nodes("drain")
        resumed = hpcq("resume", "rehearsal", "--wait", timeout_s=TIMEOUT_S)
        assert resumed.code == 0, resumed.err + resumed.out
        assert hpcq("merge", "rehearsal", "--json").document["missing"] == 0


@pytest.mark.slurm
def test_a_finished_quantization_that_slurm_queues_again_and_holds_is_waited_for_by_nobody(
    core_python: Path, tmp_path: Path
) -> None:
    """What is on disk is done, whatever the queue says: `resume` does not make evaluations depend on its job."""
    with VirtualCluster() as cluster, slurm_conf(cluster):
        cluster.write_profile({"core": str(core_python)})
        hpcq = Hpcq(python=core_python, folder=tmp_path)
        manifest = hpcq.write(REHEARSAL)
        slowly = ("-O", "evaluate.synthetic.load_seconds=299")
        assert hpcq("submit", manifest, "-O", f"cluster.profile={cluster.profile}", *slowly).code == 0
        quantized = {}
        deadline_s = time.monotonic() + TIMEOUT_S
        while not quantized or {unit["state"] for unit in quantized.values()} != {"done"}:
            assert time.monotonic() < deadline_s, quantized
            units = hpcq("status", "rehearsal", "--json").document["units"]
            quantized = {unit["job_id"]: unit for unit in units if unit["kind"] == "quantize"}
        for job in quantized:
            cluster.call("scontrol", "requeuehold", job)
        assert hpcq("cancel", "rehearsal", "evaluate").code == 0
        resumed = hpcq("resume", "rehearsal", "-O", "evaluate.synthetic.load_seconds=0", "--wait", timeout_s=TIMEOUT_S)
        assert resumed.code == 0, resumed.err + resumed.out


def wait_for_held(cluster: VirtualCluster) -> None:
    """Return when Slurm holds all that it tried to start."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while "held" not in (listed := cluster.call("squeue", "--noheader", "--array", "--format=%T %r")) or (
        "RUNNING" in listed or "CONFIGURING" in listed
    ):
        assert time.monotonic() < deadline_s, listed
        time.sleep(0.3)
