"""What nodes a cluster has, as sinfo tells in one call: kinds of nodes, each with the partition to ask for.

Knows sinfo and how Slurm writes GRES and times. Knows no profile and no GPU's name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hpcq.launch.queue import call

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
    """Nodes with the same GPUs. partition: the one to ask for, `others` those that have these nodes, too.

    cpus, memory_mib: what each of them has at least. nodes: those in service, of `known`; 0: none is. features: those
    that all have.
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
    others: tuple[str, ...] = ()


def node_kinds() -> tuple[NodeKind, ...]:
    """The kinds of nodes of this cluster, those with GPUs first.

    Raises:
        EnvironmentFault: there is no Slurm, or it does not answer.
    """
    return kinds_of(read_nodes(call("sinfo", "--noheader", "--Node", f"--format={_FORMAT}")))


def cluster_name() -> str:
    """What this cluster calls itself.

    Raises:
        EnvironmentFault: there is no Slurm, or it does not answer.
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
    """The kinds that the rows are of: by type and number of GPUs; those with most GPUs first, without GPUs last."""
    groups: dict[tuple[str | None, int], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.gpu_type, row.gpus].append(row)
    kinds = [_kind(members) for members in groups.values()]
    return tuple(sorted(kinds, key=lambda kind: (-kind.gpus, kind.gpu_type or "")))


def _kind(rows: Sequence[Row]) -> NodeKind:
    by_partition: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_partition[row.partition].append(row)
    best = max(sorted(by_partition), key=lambda name: _worth(by_partition[name]))
    chosen = by_partition[best]
    usable = sum(row.is_usable for row in chosen)
    return NodeKind(
        gpu_type=chosen[0].gpu_type,
        gpus=chosen[0].gpus,
        cpus=min(row.cpus for row in chosen),
        memory_mib=min(row.memory_mib for row in chosen),
        features=tuple(name for name in chosen[0].features if all(name in row.features for row in chosen)),
        nodes=min(usable, chosen[0].most_nodes or usable),
        known=len(chosen),
        partition=best,
        minutes=chosen[0].minutes,
        others=tuple(sorted(set(by_partition) - {best})),
    )


def _worth(rows: Sequence[Row]) -> tuple[int, float, bool]:
    """A partition with more of the nodes in service comes first, then the longer time limit, then the default."""
    first = rows[0]
    return sum(row.is_usable for row in rows), first.minutes or _NO_LIMIT, first.is_default
