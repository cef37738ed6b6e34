"""Nodes that a submission excludes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcq.core.attempts import AttemptRecord, utc_now
from hpcq.core.failures import Failure
from hpcq.core.outcomes import Launcher, Outcome
from hpcq.launch.recovery.node_exclusion import nodes_to_exclude
from hpcq.launch.recovery.retry_policy import RetryPolicy


def faulty(node: str) -> AttemptRecord:
    """Return an attempt that has just failed because of the node."""
    return AttemptRecord(
        unit="u",
        attempt=1,
        job_id="1",
        node=node,
        pid=0,
        start=utc_now(),
        end=utc_now(),
        launcher=Launcher.SLURM,
        outcome=Outcome.FAILED,
        failure=Failure.NODE_FAULT,
    )


def test_a_node_that_was_removed_from_the_cluster_is_not_excluded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch rejects names that Slurm does not know ("Invalid node name specified")."""
    sinfo = tmp_path / "sinfo"
    sinfo.write_text("#!/usr/bin/env bash\nprintf 'n1|idle\\nn2|idle\\nn3|mix\\n'\n")
    sinfo.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert nodes_to_exclude({"u": [faulty("gone"), faulty("n1")]}, "p", RetryPolicy()) == ("n1",)
