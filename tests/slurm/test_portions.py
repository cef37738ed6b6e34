"""A site that allows five submitted jobs: runs are submitted in portions, and each merge submits the next."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.core.attempts import read_attempts
from hpcq.slurm import squeue
from tests.command_line import REHEARSAL, Hpcq
from tests.slurm.cluster import VirtualCluster
from tests.slurm.sites import SITES, enter_site
from tests.slurm.waiting import wait_for

LIMIT = 5
UNITS = 8  # a quantization, two variants of three shards, a merge
MANIFEST = REHEARSAL.replace("shards = 2", "shards = 3")


@pytest.fixture
def hpcq(
    cluster: VirtualCluster,
    core_python: Path,
    transformers_python: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Hpcq:
    """The command line at the site, with an idle cluster, a manifest and a profile in its folder."""
    cluster.write_profile({"core": str(core_python), "transformers": str(transformers_python)})
    cluster.cancel_all_jobs()
    enter_site(monkeypatch, "five_jobs")
    (tmp_path / "calls").mkdir()
    busy = f"export PATH={SITES / 'busy_for_jobs'}:$PATH HPCQ_TEST_CALLS={tmp_path / 'calls'}"
    found = Hpcq(python=core_python, folder=tmp_path)
    options = f"max_submitted_jobs = {LIMIT}\nsetup = ['{busy}']"
    profile = cluster.profile.read_text().replace("\n\n", f"\n[slurm]\n{options}\n\n", 1)
    found.write(MANIFEST.replace('profile = "local"', f'profile = "{found.write(profile, "site.toml")}"'))
    return found


def test_a_run_that_is_larger_than_the_limit_completes(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """Nobody types a second command. While other jobs take all places, the merge waits in the queue and tries again.

    Observed: the first `sbatch` of a merge that failed because the controller was busy stopped the run.
    """
    planned = hpcq("plan", "manifest.toml", "--json")
    assert planned.code == 0, planned.err
    submitted = hpcq("submit", "manifest.toml", "--json")
    assert submitted.code == 0, submitted.err
    first = [unit for array in submitted.document["submitted"] for unit in array["units"]]
    assert first == [unit for array in planned.document["arrays"] for unit in array["units"]]
    assert len(first) == LIMIT
    assert planned.document["later_units"] == UNITS - LIMIT
    others = [
        cluster.call("sbatch", "--parsable", "--hold", "--wrap=true", "--output=/dev/null").strip()
        for _ in range(LIMIT - 1)
    ]
    merge = next(unit for unit in first if unit.startswith("merge"))
    wait_for("the merge waits for room", lambda: is_delayed(merge_job(hpcq)))
    status = hpcq("status", "rehearsal", "--json").document
    assert status["state"] == "pending"
    assert status["counts"] == {"done": LIMIT - 1, "pending": 1, "waiting": UNITS - LIMIT}
    again = hpcq("submit", "manifest.toml")
    assert again.code == 0, again.err
    assert f"{UNITS - LIMIT} more units are submitted later by the merge (slurm.max_submitted_jobs)." in again.out
    cluster.call("scancel", *others)
    wait_for("the run is done", lambda: is_done_without_delays(hpcq, cluster))
    assert len(list((hpcq.folder / "calls").glob("sbatch.*"))) > 1
    attempts = read_attempts(hpcq.folder / "runs" / "rehearsal" / "attempts")
    assert {unit: len(records) for unit, records in attempts.items() if unit != merge} == dict.fromkeys(
        (unit["id"] for unit in status["units"] if unit["id"] != merge), 1
    )


def test_a_resume_while_the_merge_waits_replaces_it(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """Observed: two merges, one waiting for the other, left no room for a unit and a merge: the run never ended."""
    profile = (hpcq.folder / "site.toml").read_text().replace(f"jobs = {LIMIT}", "jobs = 3")
    hpcq.write(profile, "site.toml")
    options = ("-O", 'schemes.use=["bf16"]')
    submitted = hpcq("submit", "manifest.toml", "--json", *options)
    assert submitted.code == 0, submitted.err
    other = cluster.call("sbatch", "--parsable", "--hold", "--wrap=true", "--output=/dev/null").strip()
    wait_for("the merge waits for room", lambda: is_delayed(merge_job(hpcq)))
    first = merge_job(hpcq)
    cluster.call("scancel", other)
    resumed = hpcq("resume", "rehearsal", "--json")
    assert resumed.code == 0, resumed.err
    assert first not in cluster.call("squeue", "--noheader", "--format=%i").split()
    wait_for("the run is done", lambda: is_done_without_delays(hpcq, cluster))


def test_cancelled_units_of_later_portions_run_only_after_a_resume(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """Observed: the merge submitted evaluations that were cancelled, and left out those that were resumed."""
    assert hpcq("submit", "manifest.toml").code == 0
    cancelled = hpcq("cancel", "rehearsal", "evaluate")
    assert "evaluate: 6 units" in cancelled.out
    wait_for("the merge has ended", lambda: not squeue.count_jobs())
    counts = hpcq("status", "rehearsal", "--json").document["counts"]
    assert counts["cancelled"] + counts.get("done", 0) == UNITS
    assert counts["cancelled"] >= UNITS - LIMIT
    assert hpcq("resume", "rehearsal").code == 0
    wait_for("the run is done", lambda: is_done_without_delays(hpcq, cluster))


def is_done_without_delays(hpcq: Hpcq, cluster: VirtualCluster) -> bool:
    """Whether the run is done. A merge that waits for room, because jobs have just ended, starts now."""
    merge = merge_job(hpcq)
    if is_delayed(merge):
        cluster.call("scontrol", "update", f"JobId={merge}", "StartTime=now")
    return bool(hpcq("status", "rehearsal", "--json").document["state"] == "done")


def merge_job(hpcq: Hpcq) -> str:
    """Return the id of the run's last merge job."""
    units = hpcq("status", "rehearsal", "--json").document["units"]
    return next(str(unit["job_id"]) for unit in units if unit["kind"] == "merge")


def is_delayed(job_id: str) -> bool:
    """Whether the job is pending until a start time."""
    job = squeue.poll("rehearsal").get(job_id)
    return job is not None and job.reason == "BeginTime"


def test_a_submission_without_room_says_so(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """Nothing of the run is in the queue, so nothing would continue it: an error, and no jobs."""
    for _ in range(LIMIT - 1):
        cluster.call("sbatch", "--hold", "--wrap=true", "--output=/dev/null")
    refused = hpcq("submit", "manifest.toml")
    assert refused.code == 3, refused.out
    assert f"slurm.max_submitted_jobs of the cluster profile is {LIMIT}" in refused.err
    assert not list(hpcq.folder.glob("logs/rehearsal/submitit/*"))
