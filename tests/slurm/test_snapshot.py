"""Jobs run the code that was submitted, also if the checkout changes or moves while they wait."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hpcq.core.environments import CHECKOUT
from hpcq.core.paths import RunLayout
from hpcq.core.work_records import UnitState
from hpcq.launch.package_snapshot import make_snapshot
from hpcq.slurm.client import run_client
from hpcq.slurm.squeue import poll
from hpcq.store import read_segment, segment_paths
from tests.slurm.cluster import VirtualCluster
from tests.slurm.synthetic_units import layout_at, synthetic_array, synthetic_unit
from tests.slurm.waiting import attempts_of, wait_until_ended

SUBMIT = """
import pickle, sys
import hpcq
from hpcq.launch.slurm_launcher import SlurmLauncher
assert hpcq.__file__.startswith(sys.argv[2])
layout, arrays = pickle.loads(bytes.fromhex(sys.argv[1]))
SlurmLauncher(layout).submit(arrays)
"""


@pytest.fixture
def layout(cluster: VirtualCluster, tmp_path: Path) -> Iterator[RunLayout]:
    """A new run on an idle cluster."""
    yield layout_at(tmp_path, name="snapshot")
    cluster.cancel_all_jobs()


def test_a_job_that_waited_runs_what_was_submitted(layout: RunLayout, tmp_path: Path) -> None:
    """Observed: waiting jobs failed when the checkout moved. The responses have the digest of the code."""
    checkout = tmp_path / "checkout"
    for name in ("hpcq", "sbatch", "modules", "manifests"):
        shutil.copytree(CHECKOUT / name, checkout / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "setup.cfg").touch()
    array = synthetic_array(layout, "waits", [synthetic_unit(layout, "one"), synthetic_unit(layout, "two")])
    array = replace(array, extra={"hold": True})
    subprocess.run(
        [sys.executable, "-c", SUBMIT, pickle.dumps((layout, [array])).hex(), str(checkout)],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        check=True,
    )
    shutil.rmtree(checkout)
    (job_id,) = {job_id.partition("_")[0] for job_id in poll(layout.name)}
    run_client("scontrol", "release", job_id)
    states = wait_until_ended(layout)
    assert {job.state.unit_state for job in states.values()} == {UnitState.DONE}
    assert [attempts_of(layout, unit)[0].reason for unit in ("one", "two")] == [None, None]
    same = make_snapshot(layout)  # of this checkout, whose content is the same
    for unit in ("one", "two"):
        segments = [read_segment(path) for path in segment_paths(layout.unit_segments(unit))]
        assert {segment.provenance["package"] for segment in segments} == {same.digest}
