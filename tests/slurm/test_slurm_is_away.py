"""Slurm's controller does not respond for a while: waiting commands and jobs continue, `status` shows what it knows."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hpcq.core.errors import SetupError
from tests.command_line import REHEARSAL, CommandResult, Hpcq
from tests.slurm.cluster import VirtualCluster
from tests.slurm.sites import enter_site


@pytest.fixture
def hpcq(cluster: VirtualCluster, core_python: Path, tmp_path: Path) -> Hpcq:
    """The command line in an empty folder, with an idle cluster whose profile is written."""
    cluster.write_profile({"core": str(core_python), "transformers": str(core_python)})
    cluster.cancel_all_jobs()
    return Hpcq(python=core_python, folder=tmp_path)


def type_until_accepted(hpcq: Hpcq, *arguments: str | Path) -> CommandResult:
    """Type a command again while Slurm does not respond to a call that decides something, which it says in a line."""
    for _ in range(8):
        done = hpcq(*arguments)
        if done.code != SetupError.exit_code:
            return done
        assert "Unable to contact slurm controller" in done.err
        assert "Traceback" not in done.err
    raise AssertionError(done.err)


def test_a_run_is_completed_although_every_third_call_fails(
    hpcq: Hpcq, cluster: VirtualCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Observed: `submit --wait` and the epilogue of a job ended with the first call that failed.

    Of a submission that is typed again every unit runs once; a cancellation that is typed again leaves no job.
    """
    calls = tmp_path / "calls"
    calls.mkdir()
    text = REHEARSAL + "synthetic = { load_seconds = 5.0 }\n"
    profile = f"cluster.profile={cluster.profile}"
    monkeypatch.setenv("HPCQ_TEST_CALLS", str(calls))
    enter_site(monkeypatch, "every_third_call")
    submitted = type_until_accepted(hpcq, "submit", hpcq.write(text), "-O", profile, "--wait")
    assert submitted.code == 0, submitted.err
    assert "run rehearsal: done (6 done)" in submitted.out
    units = hpcq("status", "rehearsal", "--json").document["units"]
    assert [unit["attempts"] for unit in units] == [1] * 6
    assert {path.name.partition(".")[0] for path in calls.iterdir()} >= {"sbatch", "squeue"}

    slow = hpcq.write(text.replace("5.0", "60.0"), "slow.toml")
    options = ("-O", profile, "-O", "run.name=slow")
    assert type_until_accepted(hpcq, "submit", slow, *options).code == 0
    assert type_until_accepted(hpcq, "cancel", "slow").code == 0
    states = {unit["state"] for unit in type_until_accepted(hpcq, "status", "slow", "--json").document["units"]}
    assert states <= {"cancelled", "done"}


def test_status_shows_what_the_run_recorded(
    hpcq: Hpcq, cluster: VirtualCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While squeue hangs: the last recorded states, why they may be old, and exit code 3, within seconds."""
    manifest = hpcq.write(REHEARSAL + "synthetic = { load_seconds = 60.0 }\n")
    assert hpcq("submit", manifest, "-O", f"cluster.profile={cluster.profile}").code == 0
    with monkeypatch.context() as patch:
        enter_site(patch, "hanging")
        began_s = time.monotonic()
        shown = hpcq("status", "rehearsal")
        assert time.monotonic() - began_s < 30  # 4 s for squeue; the rest is for a loaded machine
        assert shown.code == 3
        assert "Slurm does not respond, so unfinished units are shown as last recorded: `squeue` got" in shown.out
        assert "failed" not in shown.out
        assert hpcq("status", "rehearsal", "--json").document["slurm_error"].startswith("`squeue` got no response")
    hpcq("cancel", "rehearsal")
