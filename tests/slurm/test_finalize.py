"""Finalization by the merge: it resubmits units whose jobs died with their batch shell, without `hpcq` running."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from hpcq.core.attempts import AttemptRecord, read_attempts
from hpcq.quantize.synthetic import SECONDS_VARIABLE
from tests.command_line import REHEARSAL, Hpcq
from tests.slurm.cluster import VirtualCluster
from tests.slurm.processes import batch_shell
from tests.slurm.waiting import wait_for

SLOW = REHEARSAL + "synthetic = { request_seconds = 1.5 }\n"
QUANTIZE_S = 40
"""A machine under load needs seconds for each of the commands that come before the kill of the quantization."""


@pytest.fixture
def hpcq(cluster: VirtualCluster, core_python: Path, transformers_python: Path, tmp_path: Path) -> Hpcq:
    """The command line in an empty folder, with an idle cluster whose profile is written."""
    cluster.write_profile({"core": str(core_python), "transformers": str(transformers_python)})
    cluster.cancel_all_jobs()
    return Hpcq(python=core_python, folder=tmp_path)


def ids_by_name(ids: Iterable[str]) -> dict[str, str]:
    """Return unit ids by short names: 'quantize', 'bf16.0of2', 'w4a16.0of2', 'merge'."""
    found = {}
    for unit_id in ids:
        kind, _, rest = unit_id.partition(".")
        scheme = "bf16" if "bf16" in rest else "w4a16"
        found[f"{scheme}.{rest.rpartition('.')[2]}" if kind == "evaluate" else kind] = unit_id
    return found


def states(hpcq: Hpcq) -> dict[str, str]:
    """Return the states of the run's units by short names."""
    status = hpcq("status", "rehearsal", "--json")
    assert not status.err, status.err
    found = {unit["id"]: unit["state"] for unit in status.document["units"]}
    return {name: found[unit_id] for name, unit_id in ids_by_name(found).items()}


def attempts(hpcq: Hpcq) -> dict[str, list[AttemptRecord]]:
    """Return the run's attempts by unit."""
    return read_attempts(hpcq.folder / "runs" / "rehearsal" / "attempts")


def kill_shell(hpcq: Hpcq, unit: str) -> None:
    """Send SIGKILL to the batch shell of a running unit: its job dies with it, and no trap can run."""
    wait_for(f"{unit} runs", lambda: unit in attempts(hpcq))
    os.kill(batch_shell(attempts(hpcq)[unit][0].job_id), signal.SIGKILL)


def test_the_merge_resubmits_units_that_died_with_their_shell(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """A killed quantization and its dependents, cancelled by Slurm, run again. Units that the user cancelled do not."""
    manifest, profile = hpcq.write(SLOW), f"cluster.profile={cluster.profile}"
    submitted = hpcq("submit", manifest, "-O", profile, "--json", env={SECONDS_VARIABLE: str(QUANTIZE_S)})
    assert submitted.code == 0, submitted.err
    ids = ids_by_name(unit for array in submitted.document["submitted"] for unit in array["units"])
    # The cancellation must precede the kill of the quantization, which runs meanwhile.
    command = [hpcq.python, "-m", "hpcq", "cancel", "rehearsal", ids["w4a16.1of2"]]
    with subprocess.Popen(command, cwd=hpcq.folder) as cancel:
        kill_shell(hpcq, ids["bf16.0of2"])
    assert cancel.returncode == 0
    kill_shell(hpcq, ids["quantize"])
    expected = dict.fromkeys(ids, "done") | {"w4a16.1of2": "cancelled"}
    wait_for("all other units are done", lambda: states(hpcq) == expected)
    decisions = {name: [(one.failure, one.decision) for one in attempts(hpcq)[unit]] for name, unit in ids.items()}
    for name in ("quantize", "bf16.0of2"):
        assert decisions[name][0] == ("killed", "retry")
        assert decisions[name][-1] == (None, None)
    assert decisions["w4a16.1of2"] == [(None, "hold")]
    assert attempts(hpcq)[ids["w4a16.1of2"]][0].reason == "cancelled before it started"
    assert len(decisions["merge"]) >= 2
    assert hpcq("merge", "rehearsal", "--json").document["missing"] > 0
    assert hpcq("resume", "rehearsal", "--wait").code == 0
    assert hpcq("merge", "rehearsal", "--json").document["missing"] == 0
