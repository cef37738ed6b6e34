"""File operations of the commands grow linearly with the units of a run, with all jobs pending."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.operations import Operations
from tests.slurm.cluster import CLASSES, VirtualCluster

MANIFEST = """
[run]
name = "run-{shards}"
[[models]]
id = "meta-llama/Llama-3.1-8B-Instruct"
[schemes]
use = ["bf16", "fp8"]
[tasks]
use = ["arc_challenge"]
limit = 80
[evaluate]
backend = "synthetic"
shards = {shards}
"""
FEW, MANY = 10, 40
"""Shards of each of the two variants."""
MAX_GROWTH = 1.3
"""Growth of the operations per unit. Quadratic growth would be 4."""

COMMANDS = {"submit": 0, "status": 0, "resume": 0, "cancel": 0, "report": 1}
"""Commands and their exit codes: there is nothing to report."""


@pytest.fixture
def stopped_cluster(cluster: VirtualCluster, core_python: Path) -> Iterator[VirtualCluster]:
    """An idle cluster that starts no jobs."""
    cluster.write_profile({"core": str(core_python), "transformers": str(core_python)})
    cluster.cancel_all_jobs()
    for name in CLASSES:
        cluster.call("scontrol", "update", f"PartitionName={name}", "State=DOWN")
    yield cluster
    cluster.cancel_all_jobs()
    for name in CLASSES:
        cluster.call("scontrol", "update", f"PartitionName={name}", "State=UP")


def operations(folder: Path, python: Path, shards: int, profile: Path) -> dict[str, Operations]:
    """Return the operations of each command in the folder of a run."""
    manifest = folder / f"{shards}.toml"
    manifest.write_text(MANIFEST.format(shards=shards))
    found = {}
    for verb, code in COMMANDS.items():
        run = [str(manifest), "-O", f"cluster.profile={profile}"] if verb == "submit" else [f"run-{shards}"]
        output = folder / "operations.json"
        command = [str(python), "-m", "tests.operations", str(output), str(folder), verb, *run]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ})
        assert done.returncode == code, (verb, done.stdout, done.stderr)
        found[verb] = Operations(**json.loads(output.read_text()))
    return found


def test_the_commands_are_linear(stopped_cluster: VirtualCluster, core_python: Path, tmp_path: Path) -> None:
    """Files opened, folders listed, and their entries, per unit."""
    few, many = (operations(tmp_path, core_python, shards, stopped_cluster.profile) for shards in (FEW, MANY))
    for verb in COMMANDS:
        assert many[verb].total / MANY <= MAX_GROWTH * few[verb].total / FEW, (verb, few[verb], many[verb])
    assert few["cancel"].opened > FEW
