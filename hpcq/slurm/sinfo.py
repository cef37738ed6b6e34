"""What nodes a cluster has, as sinfo tells in one call: kinds of nodes, each with the partition to ask for.

Knows sinfo, how Slurm writes GRES and times, and how GPUs are named. Knows no profile.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hpcq.catalog.gpu_aliases import guess_gpu
from hpcq.slurm.squeue import call

_FORMAT = "%N|%P|%G|%c|%m|%f|%l|%s|%a|%t"
_GPUS = re.compile(r"(?:^|,)gpu:(?:(?P<type>[^:,(]+):)?(?P<count>\d+)(?:\([^)]*\))?")
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?:(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d+)")
_OUT_OF_SERVICE = ("down", "drain", "drng", "fail", "inval", "unk", "maint", "futr")
_NO_LIMIT = float("inf")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A node in one of its partitions. minutes: the partition's time limit; None: it has none, or it is not told.

    most_nodes: that one job may take there; None: any number.
    """

    node: str
    partition: str
    is_default: bool
    gpu_type: str | None
    gpus: int
    cpus: int
    memory_mib: int
    features: tuple[str, ...]
    minutes: int | None
    most_nodes: int | None
    is_usable: bool


@dataclass(frozen=True, kw_only=True)
class NodeKind:
    """Nodes with the same GPUs. partition: the one to ask for, `others` those that have all of these nodes, too.

    cpus, memory_mib: what each node of the partition has at least that has these GPUs. nodes: those in service, of
    `known`; 0: none is. features: those that all have. feature: the one that tells the GPUs, where they have no type.
    """

    gpu_type: str | None
    gpus: int
    cpus: int
    memory_mib: int
    features: tuple[str, ...]
    nodes: int
    known: int
    partition: str
    minutes: int | None
    feature: str | None = None
    others: tuple[str, ...] = ()


def node_kinds() -> tuple[NodeKind, ...]:
    """The kinds of nodes of this cluster, those with GPUs first.

    Raises:
        SetupError: there is no Slurm, or it does not answer.
    """
    return kinds_of(read_nodes(call("sinfo", "--noheader", "--Node", f"--format={_FORMAT}")))


def cluster_name() -> str:
    """What this cluster calls itself.

    Raises:
        SetupError: there is no Slurm, or it does not answer.
    """
    found = re.search(r"^ClusterName\s*=\s*(\S+)", call("scontrol", "show", "config"), re.MULTILINE)
    return found[1] if found else "cluster"


def read_nodes(listing: str) -> list[Row]:
    """The rows of what sinfo printed; a node of two types of GPUs has a row for each."""
    rows = []
    for line in listing.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) != _FORMAT.count("|") + 1:
            continue
        node, partition, gres, cpus, memory, features, limit, size, availability, state = cells
        most = size.rpartition("-")[2]
        for gpu_type, gpus in _gpus(gres):
            rows.append(
                Row(
                    node=node,
                    partition=partition.removesuffix("*"),
                    is_default=partition.endswith("*"),
                    gpu_type=gpu_type,
                    gpus=gpus,
                    cpus=int(cpus.rstrip("+")),
                    memory_mib=int(memory.rstrip("+")),
                    features=() if features == "(null)" else tuple(features.split(",")),
                    minutes=_minutes(limit),
                    most_nodes=int(most) if most.isdigit() else None,
                    # "idle*" does not answer; "idle~" sleeps, and is woken for a job
                    is_usable=availability == "up" and not state.startswith(_OUT_OF_SERVICE) and "*" not in state,
                )
            )
    return rows


def _gpus(gres: str) -> list[tuple[str | None, int]]:
    counts: dict[str | None, int] = defaultdict(int)
    for found in _GPUS.finditer(gres):
        counts[found["type"]] += int(found["count"])
    return list(counts.items()) or [(None, 0)]


def _minutes(limit: str) -> int | None:
    found = _TIME.fullmatch(limit)
    if found is None:
        return None
    days, hours, minutes = (int(found[name] or 0) for name in ("days", "hours", "minutes"))
    return (days * 24 + hours) * 60 + minutes


def kinds_of(rows: Iterable[Row]) -> tuple[NodeKind, ...]:
    """The kinds that the rows are of; those with most GPUs first, without GPUs last.

    By type and number of GPUs, by the feature that tells the GPUs where they have no type, and by partition where one
    does not have the other's nodes.
    """
    groups: dict[tuple[str | None, int, str | None], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.gpu_type, row.gpus, _telling_feature(row)].append(row)
    kinds = [kind for (_, _, feature), members in groups.items() for kind in _kinds(members, feature)]
    return tuple(sorted(kinds, key=lambda kind: (-kind.gpus, kind.gpu_type or "")))


def _telling_feature(row: Row) -> str | None:
    """The feature by which to ask for a node whose GPUs have no type: 'a100-40' rather than 'a100'."""
    if row.gpu_type or not row.gpus:
        return None
    naming, guess = [name for name in row.features if guess_gpu(name)], guess_gpu(*row.features)
    return next((name for name in naming if guess_gpu(name) == guess), naming[0] if naming else None)


def _kinds(rows: Sequence[Row], feature: str | None) -> Iterator[NodeKind]:
    """Partitions of nodes with the same GPUs until each of them is in one, the best first."""
    by_partition: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_partition[row.partition].append(row)
    nodes = {name: {row.node for row in members} for name, members in by_partition.items()}
    left = set().union(*nodes.values())
    while left:
        counted = {name: [row for row in members if row.node in left] for name, members in by_partition.items()}
        best = max(sorted(name for name, own in counted.items() if own), key=lambda name: _worth(counted[name]))
        others = tuple(sorted(name for name in nodes if name != best and nodes[name] >= nodes[best] & left))
        yield _kind(by_partition[best], counted[best], feature, others)
        left -= nodes[best]


def _kind(rows: Sequence[Row], counted: Sequence[Row], feature: str | None, others: tuple[str, ...]) -> NodeKind:
    """Of one partition. counted: those of its rows whose nodes are in no other kind; a job may get any of them."""
    first, usable = rows[0], sum(row.is_usable for row in counted)
    return NodeKind(
        gpu_type=first.gpu_type,
        gpus=first.gpus,
        cpus=min(row.cpus for row in rows),
        memory_mib=min(row.memory_mib for row in rows),
        features=tuple(name for name in first.features if all(name in row.features for row in rows)),
        nodes=min(usable, first.most_nodes or usable),
        known=len(counted),
        partition=first.partition,
        minutes=first.minutes,
        feature=feature,
        others=others,
    )


def _worth(rows: Sequence[Row]) -> tuple[int, float, bool]:
    """A partition with more of the nodes in service comes first, then the longer time limit, then the default."""
    first = rows[0]
    return sum(row.is_usable for row in rows), first.minutes or _NO_LIMIT, first.is_default
