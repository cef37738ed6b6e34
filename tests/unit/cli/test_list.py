"""`hpcq list`, and `hpcq status` without the name of a run."""

from __future__ import annotations

import shutil
from dataclasses import replace

from hpcq.core.outcomes import Outcome
from hpcq.run.overview import gpu_hours
from tests.command_line import REHEARSAL, Hpcq
from tests.unit.launch.test_retry_policy import attempt


def test_runs_are_listed_with_what_they_have_used(finished: Hpcq) -> None:
    """State, units, size and time; a rehearsal on this machine holds no GPUs."""
    [row] = finished("list", "--json").document["runs"]
    assert (row["run"], row["state"], row["done"], row["units"], row["gpu_hours"]) == ("rehearsal", "done", 6, 6, 0.0)
    run = finished.folder / "runs" / "rehearsal"
    files = [path for path in (*run.rglob("*"), *(finished.folder / "logs").rglob("*")) if path.is_file()]
    assert row["disk_bytes"] == sum(path.lstat().st_size for path in files if not path.is_symlink())
    lines = finished("list").out.splitlines()
    assert len(lines) == 2
    assert lines[1].split()[:3] == ["rehearsal", "done", "6/6"]


def test_status_without_a_name_is_that_of_the_latest_run(finished: Hpcq) -> None:
    """Also as JSON."""
    assert finished("status").out == finished("status", "rehearsal").out
    assert finished("status", "--json").document["run"] == "rehearsal"


def test_a_damaged_run_is_listed_with_the_problem(finished: Hpcq) -> None:
    """The other runs are listed, too. A copy of a run is not the run."""
    other = finished.folder / "other"
    shutil.copytree(finished.folder / "runs" / "rehearsal", other / "runs" / "rehearsal")
    (other / "runs" / "cut").mkdir()
    (other / "runs" / "cut" / "manifest.lock.toml").write_text("[run")
    here = replace(finished, folder=other)
    rows = {row["run"]: row for row in here("list", "--json").document["runs"]}
    assert "the lock file is damaged" in rows["cut"]["problem"]
    assert "Move the folder back" in rows["rehearsal"]["problem"]
    assert {row["state"] for row in rows.values()} == {None}
    assert here("list").code == 0


def test_without_a_run_the_next_command_is_named(hpcq: Hpcq) -> None:
    """`list` says so; `status` needs a run."""
    assert hpcq("list").out == "no runs in runs: start one with `hpcq submit MANIFEST`\n"
    refused = hpcq("status")
    assert (refused.code, refused.err) == (
        2,
        "runs: there is no run: name its folder, or start one with `hpcq submit MANIFEST`.\n",
    )


def test_a_run_that_was_only_planned_is_not_listed(hpcq: Hpcq) -> None:
    """`plan` writes nothing."""
    hpcq("plan", hpcq.write(REHEARSAL))
    assert hpcq("list", "--json").document["runs"] == []


def test_a_killed_attempt_does_not_count_until_now() -> None:
    """It has recorded no end. Only the last attempt of a unit that runs counts until now."""
    start = "2026-01-01T00:00:00+00:00"
    ended = replace(attempt(), start=start, end="2026-01-01T02:00:00+00:00", gpus=4, outcome=Outcome.FAILED)
    without_end = replace(attempt(), start=start, end=None, gpus=4, outcome=Outcome.RUNNING)
    assert gpu_hours({"u": [without_end, ended]}, {"u"}) == 8.0
    assert gpu_hours({"u": [ended, without_end]}, ()) == 8.0
    assert gpu_hours({"u": [ended, without_end]}, {"u"}) > 8.0


def test_a_file_is_no_folder_of_runs(hpcq: Hpcq) -> None:
    """It is the user's input; without runs, a folder is none."""
    refused = hpcq("list", hpcq.write(REHEARSAL))
    assert (refused.code, "is not a folder" in refused.err) == (2, True)
