"""Slurm's controller does not respond for a while: waiting commands and jobs continue, `status` shows what it knows."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.command_line import REHEARSAL, Hpcq
from tests.slurm.cluster import VirtualCluster
from tests.slurm.sites import enter_site


@pytest.fixture
def hpcq(cluster: VirtualCluster, core_python: Path, tmp_path: Path) -> Hpcq:
    """The command line in an empty folder, with an idle cluster whose profile is written."""
    cluster.write_profile({"core": str(core_python), "transformers": str(core_python)})
    cluster.cancel_all_jobs()
    return Hpcq(python=core_python, folder=tmp_path)


def test_a_run_is_completed_although_every_third_call_fails(
    hpcq: Hpcq, cluster: VirtualCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Observed: `submit --wait` and the epilogue of a job ended with the first call that failed."""
    calls = tmp_path / "calls"
    calls.mkdir()
    manifest = hpcq.write(REHEARSAL + "synthetic = { load_seconds = 5.0 }\n")
    monkeypatch.setenv("HPCQ_TEST_CALLS", str(calls))
    enter_site(monkeypatch, "every_third_call")
    submitted = hpcq("submit", manifest, "-O", f"cluster.profile={cluster.profile}", "--wait")
    assert submitted.code == 0, submitted.err
    assert "run rehearsal: done (6 done)" in submitted.out
    assert len(list(calls.iterdir())) >= 3


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
