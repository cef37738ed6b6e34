"""The shell, or the job, in which hpcq is typed: its options of Slurm's clients do not change what is submitted."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from hpcq.slurm.client import run_client
from hpcq.slurm.squeue import poll
from tests.command_line import REHEARSAL, Hpcq
from tests.slurm.cluster import VirtualCluster
from tests.slurm.sites import misleading_variables
from tests.slurm.waiting import wait_for


@pytest.fixture
def hpcq(cluster: VirtualCluster, core_python: Path, transformers_python: Path, tmp_path: Path) -> Hpcq:
    """The command line in an empty folder, with an idle cluster whose profile is written."""
    cluster.write_profile({"core": str(core_python), "transformers": str(transformers_python)})
    cluster.cancel_all_jobs()
    return Hpcq(python=core_python, folder=tmp_path)


def test_no_variable_of_the_shell_changes_a_run(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """With all variables of the clients set to something misleading, a run is as planned and not submitted twice."""
    manifest = hpcq.write(REHEARSAL)
    variables = misleading_variables()
    profile = f"cluster.profile={cluster.profile}"
    planned = hpcq("plan", manifest, "-O", profile, "--json", env=variables).document
    (note,) = [note for note in planned["notes"] if "not passed on to Slurm" in note]
    assert "SBATCH_TIMELIMIT" in note
    submitted = hpcq("submit", manifest, "-O", profile, "--json", env=variables)
    assert submitted.code == 0, submitted.err
    jobs = {item["array"]: item["job_id"] for item in submitted.document["submitted"]}
    limits = {array["name"]: array["time_limit_minutes"] for array in planned["arrays"]}
    for array, job_id in jobs.items():
        shown = run_client("scontrol", "show", "job", job_id)
        assert f"TimeLimit={limits[array] // 60:02}:{limits[array] % 60:02}:00" in shown
        assert "MinMemoryNode=64M" not in shown
    again = hpcq("submit", manifest, "-O", profile, "--json", env=variables)
    assert again.code == 0, again.err
    assert again.document["submitted"] == []

    def status() -> dict[str, Any]:
        document: dict[str, Any] = hpcq("status", "rehearsal", "--json", env=variables).document
        return document

    wait_for("the run has ended", lambda: status()["state"] not in ("running", "pending"))
    document = status()
    assert document["counts"] == {"done": 6}, document
    attempts = [json.loads(path.read_text()) for path in hpcq.folder.glob("runs/*/attempts/*.json")]
    assert sorted(record["unit"] for record in attempts) == sorted(unit["id"] for unit in document["units"])


def accounts_of_live_jobs() -> set[str]:
    """Return the accounts of the run's pending and running jobs. The virtual cluster accepts any account."""
    live = [job_id for job_id, job in poll("rehearsal").items() if not job.state.has_ended]
    return set(re.findall(r"Account=(\S+)", "".join(run_client("scontrol", "show", "job", job_id) for job_id in live)))


def test_the_account_of_the_shell_counts_where_the_profile_has_none(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """`plan` shows it with its origin, the jobs have it, and the lock file keeps it for later commands."""
    manifest = hpcq.write(REHEARSAL + "synthetic = { load_seconds = 60.0 }\n")
    profile = f"cluster.profile={cluster.profile}"
    variables = {"SBATCH_ACCOUNT": "proj42", "SBATCH_PARTITION": "no-such-partition"}
    notes = hpcq("plan", manifest, "-O", profile, "--json", env=variables).document["notes"]
    assert "slurm.account = 'proj42' is from SBATCH_ACCOUNT, because the profile has none." in notes
    assert hpcq("submit", manifest, "-O", profile, env=variables).code == 0
    assert accounts_of_live_jobs() == {"proj42"}
    lock = tomllib.loads((hpcq.folder / "runs" / "rehearsal" / "manifest.lock.toml").read_text())
    assert lock["cluster"]["profile"]["slurm"]["account"] == "proj42"
    assert hpcq("cancel", "rehearsal").code == 0
    assert hpcq("resume", "rehearsal", env={"SBATCH_ACCOUNT": "another"}).code == 0
    assert accounts_of_live_jobs() == {"proj42"}
    hpcq("cancel", "rehearsal")
