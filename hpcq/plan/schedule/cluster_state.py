"""Nodes in the simulated scheduler: free resources, allocations, and Slurm's backfill reservation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import field

from hpcq.core.frozen import dataclass
from hpcq.plan.schedule.resources import Resources


@dataclass
class Node:
    """One node.

    Attributes:
        free: Free resources.
        allocations: For each unit on the node, the time at which its time limit ends, and its resources.
    """

    free: Resources
    allocations: dict[str, tuple[float, Resources]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ResourceRequest:
    """Resources that an array element requests. If one element does not fit, no element with an equal request does.

    Attributes:
        nodes: Number of nodes.
        per_node: Resources on each node.
        limit_s: Time limit in seconds.
    """

    nodes: int
    per_node: Resources
    limit_s: float


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """Reservation for the first pending element.

    Attributes:
        start: Time at which the element can start.
        spare: The reserved nodes, and the resources of each that the element will leave free.
    """

    start: float
    spare: dict[int, Resources]

    def consume(self, chosen: Iterable[int], taken: Resources) -> None:
        """Allocate spare resources to a unit that may still run when the reservation starts."""
        for index in chosen:
            if index in self.spare:
                self.spare[index] = subtract(self.spare[index], taken)


def find_nodes(
    nodes: Sequence[Node], request: ResourceRequest, reservation: Reservation | None, now: float
) -> list[int] | None:
    """Return the first nodes that satisfy the request without delaying the reservation; None: there are too few."""
    chosen: list[int] = []
    for index, node in enumerate(nodes):
        is_reserved = reservation and index in reservation.spare and now + request.limit_s > reservation.start
        if not _covers(node.free, request.per_node):
            continue
        if reservation and is_reserved and not _covers(reservation.spare[index], request.per_node):
            continue
        chosen.append(index)
        if len(chosen) == request.nodes:
            return chosen
    return None


def reserve(nodes: Sequence[Node], request: ResourceRequest, now: float) -> Reservation:
    """Reserve the nodes that satisfy the request earliest, assuming that running units use their whole time limits."""
    ready: list[tuple[float, int]] = []
    for index, node in enumerate(nodes):
        free, when = node.free, now
        for end, taken in sorted(node.allocations.values()):
            if _covers(free, request.per_node):
                break
            free, when = add(free, taken), end
        ready.append((when, index))
    reserved = sorted(ready)[: request.nodes]
    start = reserved[-1][0]
    spare = {}
    for _, index in reserved:
        node = nodes[index]
        free = node.free
        for end, taken in node.allocations.values():
            if end <= start:
                free = add(free, taken)
        spare[index] = subtract(free, request.per_node)
    return Reservation(start=start, spare=spare)


def _covers(free: Resources, taken: Resources) -> bool:
    return free[0] >= taken[0] and free[1] >= taken[1] and free[2] >= taken[2] - 1e-6


def subtract(free: Resources, taken: Resources) -> Resources:
    """Return `free` without `taken`."""
    return (free[0] - taken[0], free[1] - taken[1], free[2] - taken[2])


def add(free: Resources, taken: Resources) -> Resources:
    """Return `free` after `taken` is released."""
    return (free[0] + taken[0], free[1] + taken[1], free[2] + taken[2])
