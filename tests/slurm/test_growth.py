"""Growth of a run on a real Slurm, while jobs of its earlier plan are pending and running."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.core.attempts import read_attempts
from hpcq.core.work_records import UnitState
from tests.command_line import REHEARSAL, Hpcq
from tests.slurm.cluster import VirtualCluster
from tests.slurm.synthetic_units import layout_at
from tests.slurm.waiting import wait_for, wait_until_ended

SLOW = REHEARSAL + "synthetic = { request_seconds = 1.5 }\n"
LARGER = (
    SLOW.replace('"gsm8k"', '"gsm8k", "winogrande"').replace('"synthetic-w4a16"]', '"synthetic-w4a16", "other"]')
    + """
[[schemes.define]]
name = "other"
base = "synthetic-w4a16"
group_size = 32
"""
)


@pytest.fixture
def hpcq(cluster: VirtualCluster, core_python: Path, transformers_python: Path, tmp_path: Path) -> Hpcq:
    """The command line in an empty folder, with an idle cluster whose profile is written."""
    cluster.write_profile({"core": str(core_python), "transformers": str(transformers_python)})
    cluster.cancel_all_jobs()
    return Hpcq(python=core_python, folder=tmp_path)


def suspend_evaluations(cluster: VirtualCluster, hpcq: Hpcq) -> set[str]:
    """Suspend the evaluations that run, so that they end after the next commands; return the variants that have one."""
    units = hpcq("status", "rehearsal", "--json").document["units"]
    running = [unit for unit in units if unit["kind"] == "evaluate" and unit["state"] == "running"]
    if new := {unit["job_id"] for unit in running} - suspended_jobs(cluster):
        cluster.call("scontrol", "suspend", ",".join(sorted(new)))
    return {unit["variant"] for unit in running}


def suspended_jobs(cluster: VirtualCluster) -> set[str]:
    """Return the ids of the suspended jobs."""
    listed = cluster.call("squeue", "--noheader", "--array", "--format=%i", "--states=SUSPENDED")
    return set(listed.split())


def test_a_run_grows_while_its_jobs_run(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """The added scheme is submitted at once, the added task after the jobs of the earlier plan, by the merge alone.

    No request is computed twice. A removed scheme with pending or running jobs is refused, with the command to cancel
    them.
    """
    profile = ("-O", f"cluster.profile={cluster.profile}", "--json")
    assert hpcq("submit", hpcq.write(SLOW), *profile).code == 0
    attempts = hpcq.folder / "runs" / "rehearsal" / "attempts"
    wait_for("evaluations of both variants are suspended", lambda: len(suspend_evaluations(cluster, hpcq)) > 1)

    smaller = hpcq.write(SLOW.replace(', "synthetic-w4a16"', ""), "smaller.toml")
    refused = hpcq("submit", smaller, *profile)
    assert refused.code == 2
    assert "hpcq cancel rehearsal llama-3.1-8b-instruct--synthetic-w4a16--" in refused.err

    larger = hpcq.write(LARGER, "larger.toml")
    grown = hpcq("submit", larger, *profile)
    assert grown.code == 0, grown.err
    assert "adds Llama-3.1-8B-Instruct other and winogrande" in grown.err
    submitted = [unit for array in grown.document["submitted"] for unit in array["units"]]
    assert all("--other--" in unit or unit == "merge.rehearsal" for unit in submitted)
    assert len(submitted) == 4
    again = hpcq("submit", larger, *profile)
    assert (again.code, again.document["submitted"]) == (0, [])

    cluster.call("scontrol", "resume", ",".join(suspended_jobs(cluster)))
    wait_until_ended(layout_at(hpcq.folder, "rehearsal"))
    assert hpcq("status", "rehearsal", "--json").document["state"] == UnitState.DONE
    document = hpcq("merge", "rehearsal", "--json").document
    assert (document["found"], document["missing"], document["duplicates"]) == (105, 0, 0)
    ran = {unit: len(found) for unit, found in read_attempts(attempts).items() if unit.startswith("evaluate")}
    assert sorted(ran.values()) == [1, 1, 2, 2, 2, 2]
