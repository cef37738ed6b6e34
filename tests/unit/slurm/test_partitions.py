"""Limits of partitions as scontrol prints them."""

from __future__ import annotations

from hpcq.slurm.partitions import parse_partitions

OUTPUT = """CLUSTER: plain
PartitionName=gpu AllowAccounts=proj1,Proj2 AllowQos=ALL Default=NO MaxNodes=4 MaxTime=1-12:00:00 State=UP
PartitionName=all DenyAccounts=guests DenyQos=low Default=YES MaxNodes=UNLIMITED MaxTime=UNLIMITED State=DOWN
"""


def test_limits_and_admission_are_parsed() -> None:
    """Times in minutes; accounts and QOS by lists of who may, or who may not."""
    found = parse_partitions(OUTPUT)
    gpu, default = found["gpu"], found["all"]
    assert (gpu.max_minutes, gpu.max_nodes, gpu.state, gpu.is_default) == (36 * 60, 4, "UP", False)
    assert (default.max_minutes, default.max_nodes, default.state, default.is_default) == (None, None, "DOWN", True)
    assert [gpu.admits("account", name) for name in ("PROJ1", "proj2", "proj3")] == [True, True, False]
    assert [default.admits("account", name) for name in ("guests", "proj1")] == [False, True]
    assert [default.admits("qos", name) for name in ("low", "high")] == [False, True]
