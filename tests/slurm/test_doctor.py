"""`hpcq doctor` on a real Slurm: planted faults of profile and cluster, each with its fix."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import REHEARSAL, Hpcq
from tests.slurm.cluster import VirtualCluster
from tests.slurm.sites import enter_site

Findings = list[dict[str, str]]


@pytest.fixture
def hpcq(cluster: VirtualCluster, core_python: Path, tmp_path: Path) -> Hpcq:
    """The command line in an empty folder, with an idle cluster whose profile is written."""
    cluster.write_profile({"core": str(core_python), "transformers": str(core_python)})
    cluster.cancel_all_jobs()
    return Hpcq(python=core_python, folder=tmp_path)


def findings(hpcq: Hpcq, cluster: VirtualCluster, *changes: tuple[str, str]) -> Findings:
    """Return the failures and warnings, with a profile in which each first text is replaced by the second."""
    text = cluster.profile.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    profile = hpcq.write(text, "profile.toml")
    done = hpcq("doctor", hpcq.write(REHEARSAL), "-O", f"cluster.profile={profile}", "--json", env={"PYTHONPATH": ""})
    assert "Traceback" not in done.err
    found: Findings = [one for one in done.document["findings"] if one["level"] != "ok"]
    assert done.code == (3 if any(one["level"] == "fail" for one in found) else 0)
    return found


def has(found: Findings, level: str, text: str, fix: str) -> bool:
    """Return whether a finding has the level, the text and the fix."""
    return any(one["level"] == level and re.search(text, one["text"]) and fix in one["fix"] for one in found)


def test_the_profile_of_the_cluster_has_no_fault(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """Neither failure nor warning, and Slurm would accept every array."""
    assert findings(hpcq, cluster) == []


def test_faults_of_a_profile_are_found(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """Partition, type of GPUs, memory, and an option that no node has: all in one report."""
    found = findings(
        hpcq,
        cluster,
        ('partition = "h100"', 'partition = "h200"'),
        ('gres_type = "a100"', 'gres_type = "b200"'),
    )
    assert has(found, "fail", "h100: there is no partition 'h200'", "Set gpu_classes.h100.partition to one of ")
    assert has(found, "fail", "a100: no node .* type 'b200', but a100", "Correct gpu_classes.a100.gres_type.")
    assert has(found, "fail", "array evaluate-h100-.* would reject it: .*artition", "Correct the class or the options")


@pytest.fixture
def _drained(cluster: VirtualCluster) -> Iterator[None]:
    """All nodes of a class are drained, and its partition has a short limit."""
    cluster.call("scontrol", "update", "nodename=h100-[1-2]", "state=drain", "reason=test")
    cluster.call("scontrol", "update", "partition=h100", "MaxTime=10")
    yield
    cluster.call("scontrol", "update", "partition=h100", "MaxTime=UNLIMITED")
    cluster.call("scontrol", "update", "nodename=h100-[1-2]", "state=resume")
    cluster.wait_until_idle()


@pytest.mark.usefixtures("_drained")
def test_faults_of_the_cluster_are_found(hpcq: Hpcq, cluster: VirtualCluster) -> None:
    """No node in service, and a shorter time limit than the profile's."""
    found = findings(hpcq, cluster)
    assert has(found, "fail", "h100: all 2 nodes are drained", "Ask the administrators")
    assert has(found, "warning", "h100: partition 'h100' allows 10 min", "Set gpu_classes.h100.max_minutes = 10.")


def test_a_silent_controller_is_found(
    hpcq: Hpcq, cluster: VirtualCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither Slurm that does not respond, nor a machine without its clients, ends the other checks."""
    with monkeypatch.context() as patch:
        calls = tmp_path / "calls"
        calls.mkdir()
        for number in range(2):
            (calls / str(number)).write_text("")
        patch.setenv("HPCQ_TEST_CALLS", str(calls))
        enter_site(patch, "every_third_call")
        assert findings(hpcq, cluster) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    found = findings(hpcq, cluster)
    assert has(found, "fail", "sbatch, srun, squeue, scontrol, sinfo, scancel are not on the PATH", "Log in to a login")
