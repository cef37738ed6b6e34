"""Output of Slurm 20.11 to 25.05 (recorded/README.md) has what hpcq reads from it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from hpcq.slurm.client import parse_setting
from hpcq.slurm.sbatch import parse_job_id
from hpcq.slurm.scontrol import parse_is_down, parse_job
from hpcq.slurm.sinfo import group_nodes, parse_nodes
from hpcq.slurm.squeue import parse_queue

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.toml"))
NO_VALUES = {"reason": None, "node": None, "end_time": None}


@pytest.fixture(params=RECORDED, ids=[path.stem for path in RECORDED])
def recorded(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The outputs of one version."""
    return tomllib.loads(request.param.read_text())


def test_there_are_outputs_of_all_versions() -> None:
    """The releases from 20.11 to 25.05."""
    versions = ("20.11", "21.08", "22.05", "23.02", "23.11", "24.05", "24.11", "25.05")
    assert [path.stem for path in RECORDED] == [f"slurm-{version}" for version in versions]


def test_the_queue_has_one_entry_per_element(recorded: dict[str, Any]) -> None:
    """Ids, states, restarts, nodes and reasons, of the run's jobs alone."""
    jobs = parse_queue(recorded["squeue"], "mine")
    assert {job_id: (job.state, job.restarts, job.node, job.reason) for job_id, job in jobs.items()} == {
        "17_3": ("PENDING", 0, None, "JobArrayTaskLimit"),
        "17_0": ("RUNNING", 2, "gpu01", None),
        "17_1": ("NODE_FAIL", 1, "gpu02", "NodeDown"),
        "18": (
            "PENDING",
            0,
            None,
            "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
        ),
        "19": ("OUT_OF_MEMORY", 0, "gpu01", "OutOfMemory"),
    }


def test_a_job_has_its_fields(recorded: dict[str, Any]) -> None:
    """Running, in the grace time of a preemption, pending, and ended."""
    assert len(recorded["jobs"]) == 5
    for name, row in recorded["jobs"].items():
        job = parse_job(row.pop("output"))
        found = {field: getattr(job, field) for field in {**NO_VALUES, **row}}
        assert found == {**NO_VALUES, **row}, name
        assert job.partition == "h100"


def test_a_node_is_down_or_not(recorded: dict[str, Any]) -> None:
    """A node that is powered down to save energy is not down. Observed: it counted as a node fault."""
    found = {name: parse_is_down(row["output"]) for name, row in recorded["nodes"].items()}
    assert found == {name: row["is_down"] for name, row in recorded["nodes"].items()}


def test_nodes_have_gpus_and_a_state(recorded: dict[str, Any]) -> None:
    """All forms of GRES, and the compact states: which nodes a job could get."""
    rows = {row.node: row for row in parse_nodes(recorded["sinfo"])}
    assert {name: row.is_usable for name, row in rows.items() if name != "login1"} == recorded["sinfo_usable"]
    assert {(row.gpu_type, row.gpus) for row in parse_nodes(recorded["sinfo"])} == {
        ("h100", 8),
        ("nvidia_a100_80gb_pcie_3g.40gb", 2),
        ("nvidia_a100_80gb_pcie", 1),
        (None, 8),
        (None, 0),
    }
    assert {row.time_limit_minutes for row in rows.values()} == {2 * 24 * 60, None}
    assert rows["login1"].cpus == 16
    assert len(group_nodes(parse_nodes(recorded["sinfo"]))) >= 4


def test_the_job_id_of_a_submission(recorded: dict[str, Any]) -> None:
    """With and without --parsable, with and without several clusters."""
    found = {name: parse_job_id(output) for name, output in recorded["sbatch"].items()}
    assert {job_id for job_id, _ in filter(None, found.values())} == {"17"}
    assert None not in found.values()


def test_the_configuration_has_its_settings(recorded: dict[str, Any]) -> None:
    """The array size and the cluster's name."""
    assert parse_setting(recorded["config"], "MaxArraySize") == "4001"
    assert parse_setting(recorded["config"], "ClusterName") == "alpha"
    assert parse_setting(recorded["config"], "MaxArray") is None
