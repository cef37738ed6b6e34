"""Jobs that cannot start: warnings with the key to correct, and `resume`, which replaces them."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcq.core.errors import SetupError
from hpcq.core.failures import Failure
from hpcq.launch.job_status import unit_jobs_if_any
from hpcq.launch.recovery.node_exclusion import nodes_to_exclude
from hpcq.launch.recovery.retry_policy import RetryPolicy
from hpcq.launch.slurm_launcher import SlurmLauncher
from hpcq.launch.submissions import read_submissions
from tests.command_line import REHEARSAL, Hpcq
from tests.slurm.cluster import VirtualCluster
from tests.slurm.synthetic_units import layout_at, synthetic_array, synthetic_unit
from tests.slurm.waiting import wait_for
from tests.unit.launch.test_retry_policy import attempt

NUMBERS = itertools.count()

PROFILE = f"""
name = "virtual"
scheduler = "slurm"
[gpu_classes.h100]
partition = "h100"
gpu = "H100-80"
gres_type = "h100"
nodes = 2
gpus_per_node = 8
cpus_per_node = 64
memory_gib = 900
memory_gib_per_unit = 4
cpus_per_unit = 1
{{more}}
[environments.core]
python = "{sys.executable}"
"""


@pytest.fixture
def hpcq(cluster: VirtualCluster, core_python: Path, tmp_path: Path) -> Iterator[Hpcq]:
    """The command line in an empty folder; nodes and partitions are restored afterwards."""
    cluster.cancel_all_jobs()
    yield Hpcq(python=core_python, folder=tmp_path)
    cluster.cancel_all_jobs()
    cluster.call("scontrol", "update", "PartitionName=h100", "MaxTime=INFINITE")
    cluster.resume_nodes("drain", "drng")


def manifest_with(hpcq: Hpcq, more: str) -> tuple[Path, str]:
    """Return a manifest, with a profile that has `more` in its class, and the name of its run."""
    run = f"stuck-{next(NUMBERS)}"
    profile = hpcq.write(PROFILE.format(more=more), "profile.toml")
    return hpcq.write(REHEARSAL.replace('"rehearsal"', f'"{run}"').replace('"local"', f'"{profile}"')), run


def warnings_of(hpcq: Hpcq, run: str) -> list[str]:
    """Return the warnings of `status` as soon as there are any."""
    found: list[str] = []

    def is_found() -> bool:
        found[:] = hpcq("status", run, "--json").document["warnings"]
        return bool(found)

    wait_for("a warning", is_found)
    return found


def test_units_that_wait_for_a_drained_node_are_moved(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """The node that is not excluded is drained. `status` says so, and `resume` with a corrected profile runs them."""
    cluster.call("scontrol", "update", "NodeName=h100-2", "State=DRAIN", "Reason=test")
    manifest, run = manifest_with(hpcq, 'exclude = "h100-1"')
    submitted = hpcq("submit", manifest, "--json")
    assert submitted.code == 0, submitted.err
    (warning, *_) = warnings_of(hpcq, run)
    assert "on h100 cannot start (ReqNodeNotAvail): the nodes that they may use are down or drained (h100-2)" in warning
    assert "Correct gpu_classes.h100.exclude or partition in the cluster profile" in warning
    assert f"hpcq resume {run} -O cluster.profile=FILE" in warning
    # The number of units changes when Slurm has seen what they depend on.
    assert re.search(
        r"^warning: \d units on h100 cannot start \(ReqNodeNotAvail\): ", hpcq("status", run).out, re.MULTILINE
    )
    corrected = hpcq.write(PROFILE.format(more=""), "corrected.toml")
    resumed = hpcq("resume", run, "-O", f"cluster.profile={corrected}", "--wait", "--json")
    assert resumed.code == 0, resumed.err
    assert "cannot start, and are submitted again" in resumed.err
    status = hpcq("status", run, "--json").document
    assert (status["counts"], status["warnings"]) == ({"done": 6}, [])
    assert all(unit["attempts"] == 1 for unit in status["units"])


def test_a_limit_above_the_partitions_maximum_is_a_warning(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """At `submit --dry-run` and `submit` with the value to set, and in `status` with Slurm's reason.

    For some time the reason can be PartitionConfig, which stands for any limit.
    """
    cluster.call("scontrol", "update", "PartitionName=h100", "MaxTime=3")
    manifest, run = manifest_with(hpcq, "")
    expected = "exceeds the maximum of partition 'h100': set gpu_classes.h100.max_minutes = 3 in the cluster profile."
    assert any(expected in note for note in hpcq("submit", manifest, "--dry-run", "--json").document["notes"])
    assert expected in hpcq("submit", manifest, "--json").err
    (warning, *_) = warnings_of(hpcq, run)
    known = r"PartitionTimeLimit\): their time limit exceeds that of|PartitionConfig\): they exceed a limit"
    assert re.search(rf"cannot start \(({known})", warning)
    assert "Correct gpu_classes.h100.max_minutes" in warning


@pytest.mark.usefixtures("hpcq")
def test_a_node_with_a_fault_is_used_if_the_others_are_drained(cluster: VirtualCluster) -> None:
    """Otherwise the unit would wait for a node that nobody may repair."""
    faults = {"unit": [attempt(node="h100-1", failure=Failure.NODE_FAULT)]}
    assert nodes_to_exclude(faults, "h100", RetryPolicy(exclude_hours=1e6)) == ("h100-1",)
    cluster.call("scontrol", "update", "NodeName=h100-2", "State=DRAIN", "Reason=test")
    assert nodes_to_exclude(faults, "h100", RetryPolicy(exclude_hours=1e6)) == ()


def test_a_rejected_job_that_slurm_still_lists_is_not_a_submission(cluster: VirtualCluster, tmp_path: Path) -> None:
    """Slurm lists a job that sbatch has rejected as failed (BadConstraints), with its comment."""
    layout = layout_at(tmp_path, name=f"rejected-{next(NUMBERS)}")
    array = synthetic_array(layout, "bad", [synthetic_unit(layout, "a")], gpus_per_node=1, gres_type="none")
    with pytest.raises(SetupError, match="Correct gres_type, features, memory_gib or cpus_per_unit of the class"):
        SlurmLauncher(layout).submit([array])
    assert "BadConstraints" in cluster.call("squeue", "--states=all", "--format=%r %k")
    assert unit_jobs_if_any(layout) == {}
    assert read_submissions(layout) == []
