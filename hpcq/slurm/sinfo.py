"""Groups of similar nodes of a cluster, from one sinfo call, each with the partition to request."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from hpcq.catalog.gpu_aliases import match_gpu
from hpcq.core.frozen import dataclass
from hpcq.slurm.client import run_client

_FORMAT = "%N|%P|%G|%c|%m|%f|%l|%s|%a|%t"
_GPUS = re.compile(r"(?:^|,)gpu:(?:(?P<type>[^:,(]+):)?(?P<count>\d+)(?:\([^)]*\))?")
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?:(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d+)")
_OUT_OF_SERVICE = ("down", "drain", "drng", "fail", "inval", "unk", "maint", "futr", "ext")
_NO_LIMIT = float("inf")


@dataclass(frozen=True, kw_only=True)
class NodeRow:
    """A node in one of its partitions.

    Attributes:
        time_limit_minutes: Time limit of the partition. None: no limit, or unknown.
        max_nodes_per_job: Limit of the partition. None: no limit.
    """

    node: str
    partition: str
    is_default: bool
    gpu_type: str | None
    gpus: int
    cpus: int
    memory_mib: int
    features: tuple[str, ...]
    time_limit_minutes: int | None
    max_nodes_per_job: int | None
    is_usable: bool


@dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """Nodes with the same GPUs.

    Attributes:
        cpus, memory_mib: Minimum over the partition's nodes with these GPUs.
        features: Features that all nodes have.
        usable_nodes: Nodes in service, limited to the maximum per job.
        total_nodes: All nodes, including those out of service.
        partition: Partition to request.
        gpu_feature: Feature that identifies the GPUs, if they have no GRES type.
        other_partitions: Other partitions that include all of these nodes.
    """

    gpu_type: str | None
    gpus: int
    cpus: int
    memory_mib: int
    features: tuple[str, ...]
    usable_nodes: int
    total_nodes: int
    partition: str
    time_limit_minutes: int | None
    gpu_feature: str | None = None
    other_partitions: tuple[str, ...] = ()


def node_groups() -> tuple[NodeGroup, ...]:
    """Return the groups of nodes of this cluster, those with GPUs first.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    return group_nodes(node_rows())


def node_rows() -> list[NodeRow]:
    """Return each node of this cluster in each of its partitions.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    return parse_nodes(run_client("sinfo", "--noheader", "--Node", f"--format={_FORMAT}"))


def parse_nodes(listing: str) -> list[NodeRow]:
    """Parse the output of sinfo; a node with two types of GPUs has one row per type. Other lines are skipped."""
    rows = []
    for line in listing.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) != _FORMAT.count("|") + 1:
            continue
        node, partition, gres, cpus, memory, features, limit, size, availability, state = cells
        if not (cpus.rstrip("+").isdecimal() and memory.rstrip("+").isdecimal()):
            continue
        max_nodes = size.rpartition("-")[2]
        for gpu_type, gpus in _gpus(gres):
            rows.append(
                NodeRow(
                    node=node,
                    partition=partition.removesuffix("*"),
                    is_default=partition.endswith("*"),
                    gpu_type=gpu_type,
                    gpus=gpus,
                    cpus=int(cpus.rstrip("+")),
                    memory_mib=int(memory.rstrip("+")),
                    features=() if features == "(null)" else tuple(features.split(",")),
                    time_limit_minutes=parse_minutes(limit),
                    max_nodes_per_job=int(max_nodes) if max_nodes.isdigit() else None,
                    is_usable=availability == "up" and is_in_service(state),
                )
            )
    return rows


def is_in_service(state: str) -> bool:
    """Whether a node in this state, in sinfo's compact form, can start jobs."""
    # "idle*" does not respond; "idle~" is powered down, and powered up for a job
    return not state.startswith(_OUT_OF_SERVICE) and "*" not in state


def _gpus(gres: str) -> list[tuple[str | None, int]]:
    counts: dict[str | None, int] = defaultdict(int)
    for found in _GPUS.finditer(gres):
        counts[found["type"]] += int(found["count"])
    return list(counts.items()) or [(None, 0)]


def parse_minutes(limit: str) -> int | None:
    """Return a time limit as Slurm prints it ('1-12:00:00', '30:00') in minutes; None: no limit, or unknown."""
    found = _TIME.fullmatch(limit)
    if found is None:
        return None
    days, hours, minutes = (int(found[name] or 0) for name in ("days", "hours", "minutes"))
    return (days * 24 + hours) * 60 + minutes


def group_nodes(rows: Iterable[NodeRow]) -> tuple[NodeGroup, ...]:
    """Group nodes; groups with most GPUs per node first, without GPUs last.

    Nodes are grouped by type and number of GPUs, by the feature that identifies the GPUs if they have no type, and by
    partition if no partition includes all of them.
    """
    groups: dict[tuple[str | None, int, str | None], list[NodeRow]] = defaultdict(list)
    for row in rows:
        groups[row.gpu_type, row.gpus, _gpu_feature(row)].append(row)
    found = [group for (_, _, feature), members in groups.items() for group in _split_by_partition(members, feature)]
    return tuple(sorted(found, key=lambda group: (-group.gpus, group.gpu_type or "")))


def _gpu_feature(row: NodeRow) -> str | None:
    """Return the feature to request for a node whose GPUs have no type: 'a100-40' rather than 'a100'."""
    if row.gpu_type or not row.gpus:
        return None
    candidates, match = [name for name in row.features if match_gpu(name)], match_gpu(*row.features)
    return next((name for name in candidates if match_gpu(name) == match), candidates[0] if candidates else None)


def _split_by_partition(rows: Sequence[NodeRow], feature: str | None) -> Iterator[NodeGroup]:
    """Yield one group per partition until they include all nodes (with the same GPUs), the best partition first."""
    by_partition: dict[str, list[NodeRow]] = defaultdict(list)
    for row in rows:
        by_partition[row.partition].append(row)
    nodes = {name: {row.node for row in members} for name, members in by_partition.items()}
    left = set().union(*nodes.values())
    while left:
        counted = {name: [row for row in members if row.node in left] for name, members in by_partition.items()}
        best = max(sorted(name for name, own in counted.items() if own), key=lambda name: _preference(counted[name]))
        others = tuple(sorted(name for name in nodes if name != best and nodes[name] >= nodes[best] & left))
        yield _group(by_partition[best], counted[best], feature, others)
        left -= nodes[best]


def _group(
    rows: Sequence[NodeRow], counted: Sequence[NodeRow], feature: str | None, others: tuple[str, ...]
) -> NodeGroup:
    """Return the group of one partition. A job may get any of its `rows`; `counted` are in no other group yet."""
    first, usable = rows[0], sum(row.is_usable for row in counted)
    return NodeGroup(
        gpu_type=first.gpu_type,
        gpus=first.gpus,
        cpus=min(row.cpus for row in rows),
        memory_mib=min(row.memory_mib for row in rows),
        features=tuple(name for name in first.features if all(name in row.features for row in rows)),
        usable_nodes=min(usable, first.max_nodes_per_job or usable),
        total_nodes=len(counted),
        partition=first.partition,
        time_limit_minutes=first.time_limit_minutes,
        gpu_feature=feature,
        other_partitions=others,
    )


def _preference(rows: Sequence[NodeRow]) -> tuple[int, float, bool]:
    """Sort key of a partition: number of nodes in service, then time limit, then whether it is the default."""
    first = rows[0]
    return sum(row.is_usable for row in rows), first.time_limit_minutes or _NO_LIMIT, first.is_default
