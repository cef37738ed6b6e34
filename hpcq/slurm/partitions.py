"""Limits of the cluster's partitions, from one call of scontrol."""

from __future__ import annotations

import re

from hpcq.core.frozen import dataclass
from hpcq.slurm.client import run_client
from hpcq.slurm.sinfo import parse_minutes


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A partition.

    Attributes:
        is_default: Jobs without a partition go there.
        state: UP, DOWN, DRAIN or INACTIVE.
        max_minutes: Maximum time limit. None: no limit.
        max_nodes: Maximum number of nodes per job. None: no limit.
        allowed, denied: By 'account' and 'qos': names that may or may not use it. An empty tuple of `allowed`: all may.
    """

    name: str
    is_default: bool
    state: str
    max_minutes: int | None
    max_nodes: int | None
    allowed: dict[str, tuple[str, ...]]
    denied: dict[str, tuple[str, ...]]

    def admits(self, kind: str, name: str) -> bool:
        """Whether the account or QOS ('account', 'qos') `name` may use the partition. Slurm ignores the case."""
        lower = name.lower()
        return lower not in self.denied[kind] and (not self.allowed[kind] or lower in self.allowed[kind])


def partitions() -> dict[str, Partition]:
    """Return the cluster's partitions by name.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    return parse_partitions(run_client("scontrol", "show", "partition", "--oneliner"))


def parse_partitions(output: str) -> dict[str, Partition]:
    """Parse the output of `scontrol show partition --oneliner`; other lines are skipped."""
    found = {}
    for line in output.splitlines():
        fields = dict(re.findall(r"(\w+)=(\S*)", line))
        if not line.startswith("PartitionName="):
            continue
        nodes = fields.get("MaxNodes", "")
        found[fields["PartitionName"]] = Partition(
            name=fields["PartitionName"],
            is_default=fields.get("Default") == "YES",
            state=fields.get("State", "UP"),
            max_minutes=parse_minutes(fields.get("MaxTime", "")),
            max_nodes=int(nodes) if nodes.isdecimal() else None,
            allowed={"account": _names(fields, "AllowAccounts"), "qos": _names(fields, "AllowQos")},
            denied={"account": _names(fields, "DenyAccounts"), "qos": _names(fields, "DenyQos")},
        )
    return found


def _names(fields: dict[str, str], key: str) -> tuple[str, ...]:
    value = fields.get(key, "")
    return () if value in ("", "ALL", "(null)", "N/A") else tuple(value.lower().split(","))
