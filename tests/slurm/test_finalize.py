"""Finalization by the merge: it resubmits units whose jobs died with their batch shell, without `hpcq` running."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.attempts import AttemptRecord, read_attempts
from tests.command_line import REHEARSAL, Hpcq
from tests.slurm.cluster import VirtualCluster
from tests.slurm.processes import batch_shell
from tests.slurm.waiting import wait_for

SLOW = REHEARSAL + "synthetic = { request_seconds = 1.0 }\n"


@pytest.fixture
def hpcq(cluster: VirtualCluster, core_python: Path, transformers_python: Path, tmp_path: Path) -> Hpcq:
    """The command line in an empty folder, with an idle cluster whose profile is written."""
    cluster.write_profile({"core": str(core_python), "transformers": str(transformers_python)})
    cluster.cancel_all_jobs()
    return Hpcq(python=core_python, folder=tmp_path)


def units(hpcq: Hpcq) -> dict[str, dict[str, Any]]:
    """Return the run's units by short names: 'quantize', 'bf16.0of2', 'w4a16.0of2', 'merge'."""
    found = {}
    for unit in hpcq("status", "rehearsal", "--json").document["units"]:
        kind, _, rest = unit["id"].partition(".")
        scheme = "bf16" if "bf16" in rest else "w4a16"
        found[f"{scheme}.{rest.rpartition('.')[2]}" if kind == "evaluate" else kind] = unit
    return found


def attempts(hpcq: Hpcq) -> dict[str, list[AttemptRecord]]:
    """Return the run's attempts by unit."""
    return read_attempts(hpcq.folder / "runs" / "rehearsal" / "attempts")


def kill_shell(hpcq: Hpcq, unit: str) -> None:
    """Send SIGKILL to the batch shell of a running unit: its job dies with it, and no trap can run."""
    wait_for(f"{unit} runs", lambda: unit in attempts(hpcq))
    os.kill(batch_shell(attempts(hpcq)[unit][0].job_id), signal.SIGKILL)


@pytest.mark.timeout(400)
def test_the_merge_resubmits_units_that_died_with_their_shell(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """A killed quantization and its dependents, cancelled by Slurm, run again. Units that the user cancelled do not."""
    manifest, profile = hpcq.write(SLOW), f"cluster.profile={cluster.profile}"
    submitted = hpcq("submit", manifest, "-O", profile, "--json", env={"HPCQ_SYNTHETIC_QUANTIZE_SECONDS": "20"})
    assert submitted.code == 0, submitted.err
    ids = {name: unit["id"] for name, unit in units(hpcq).items()}
    kill_shell(hpcq, ids["bf16.0of2"])
    assert hpcq("cancel", "rehearsal", ids["w4a16.1of2"]).code == 0
    kill_shell(hpcq, ids["quantize"])
    wait_for("the run is over", lambda: is_over(hpcq), timeout_s=240)
    states = {name: unit["state"] for name, unit in units(hpcq).items()}
    assert states.pop("w4a16.1of2") == "cancelled"
    assert set(states.values()) == {"done"}, states
    decisions = {name: [(one.failure, one.decision) for one in attempts(hpcq)[unit]] for name, unit in ids.items()}
    assert decisions["quantize"] == decisions["bf16.0of2"] == [("killed", "retry"), (None, None)]
    assert decisions["w4a16.1of2"] == [(None, "hold")]
    assert attempts(hpcq)[ids["w4a16.1of2"]][0].reason == "cancelled before it started"
    assert len(decisions["merge"]) == 2
    assert hpcq("merge", "rehearsal", "--json").document["missing"] > 0
    assert hpcq("resume", "rehearsal", "--wait").code == 0
    assert hpcq("merge", "rehearsal", "--json").document["missing"] == 0


def is_over(hpcq: Hpcq) -> bool:
    """Whether no unit is pending or running."""
    status = hpcq("status", "rehearsal", "--json")
    assert not status.err, status.err
    return status.document["state"] not in ("running", "pending")
