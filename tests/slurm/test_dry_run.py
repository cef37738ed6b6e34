"""`submit` makes exactly the arrays that `submit --dry-run` shows, on a real Slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command_line import REHEARSAL, Hpcq
from tests.slurm.cluster import VirtualCluster

SLOW = REHEARSAL + "synthetic = { request_seconds = 20.0 }\n"
TOO_LARGE = REHEARSAL + "synthetic = { memory_gib = 1e6 }\n[retries]\nmax_attempts_without_progress = 1\n"
"""Every evaluation fails permanently in its first attempt."""

Arrays = list[tuple[str, list[str]]]


@pytest.fixture
def hpcq(cluster: VirtualCluster, core_python: Path, tmp_path: Path) -> Hpcq:
    """The command line in an empty folder, with an idle cluster whose profile is written."""
    cluster.write_profile({"core": str(core_python)})
    cluster.wait_until_empty()
    cluster.cancel_all_jobs()
    return Hpcq(python=core_python, folder=tmp_path)


def shown(hpcq: Hpcq, *arguments: str | Path) -> Arrays:
    """Return name and units of the arrays that `plan` and `submit --dry-run` show."""
    dry_run, planned = (hpcq(*verb, *arguments, "--json") for verb in (["submit", "--dry-run"], ["plan"]))
    assert (dry_run.code, planned.code) == (0, 0), dry_run.err + planned.err
    assert dry_run.document["arrays"] == planned.document["arrays"]
    return [(array["name"], array["units"]) for array in dry_run.document["arrays"]]


def submitted(hpcq: Hpcq, *arguments: str | Path) -> Arrays:
    """Submit, and return name and units of the arrays that Slurm has accepted."""
    done = hpcq("submit", *arguments, "--json")
    assert done.code in (0, 1), done.err
    return [(array["array"], array["units"]) for array in done.document["submitted"]]


def test_a_fresh_a_pending_and_a_cancelled_run(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """All arrays, then none while all units are in the queue, then the cancelled shards with another merge."""
    arguments = (hpcq.write(SLOW), "-O", f"cluster.profile={cluster.profile}")
    expected = shown(hpcq, *arguments)
    assert len(expected) == 4
    assert submitted(hpcq, *arguments) == expected
    assert shown(hpcq, *arguments) == submitted(hpcq, *arguments) == []
    planned = hpcq("plan", *arguments)
    assert "pending or running: " in planned.out

    assert hpcq("cancel", "rehearsal", "bf16").code == 0
    expected = shown(hpcq, *arguments)
    assert [len(units) for _, units in expected] == [2, 1]
    assert all("bf16" in unit for unit in expected[0][1])
    assert submitted(hpcq, *arguments) == expected
    hpcq("cancel", "rehearsal")


def test_a_run_with_units_that_have_failed_permanently(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """They are in no array; a unit whose attempts were removed is, and so is the merge."""
    arguments = (hpcq.write(TOO_LARGE), "-O", f"cluster.profile={cluster.profile}")
    assert hpcq("submit", *arguments, "--wait", timeout_s=240).code == 1
    assert hpcq("status", "rehearsal", "--json").document["counts"]["failed"] == 4
    assert shown(hpcq, *arguments) == submitted(hpcq, *arguments) == []

    records = [json.loads(path.read_text()) for path in hpcq.folder.glob("runs/rehearsal/attempts/evaluate.*.json")]
    again = min(record["unit"] for record in records)
    for path in hpcq.folder.glob(f"runs/rehearsal/attempts/{again}.*.json"):
        path.unlink()
    expected = shown(hpcq, *arguments)
    assert [units for _, units in expected] == [[again], ["merge.rehearsal"]]
    assert submitted(hpcq, *arguments) == expected
    hpcq("cancel", "rehearsal")
