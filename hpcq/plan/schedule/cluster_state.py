"""Nodes as a scheduler sees them: what is free, what fits now, and which are kept for what waits.

Knows amounts and time limits; must not know arrays or dependencies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hpcq.plan.schedule.resources import Amounts


@dataclass
class Node:
    """free: amounts. ends: of the units on it, when their time limits end, and what they take."""

    free: Amounts
    ends: dict[str, tuple[float, Amounts]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Want:
    """What an element asks for; elements of equal wants fit or do not fit together."""

    nodes: int
    taken: Amounts
    limit_s: float


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """For the first that waits: from when on, which nodes, and what each of them will have left beside it then."""

    start: float
    spare: dict[int, Amounts]

    def keep(self, chosen: Iterable[int], taken: Amounts) -> None:
        """A later unit that may last longer takes of what was spare."""
        for index in chosen:
            if index in self.spare:
                self.spare[index] = less(self.spare[index], taken)


def fitting(nodes: Sequence[Node], want: Want, reservation: Reservation | None, now: float) -> list[int] | None:
    """The first nodes that have what is wanted and are not kept for another by then."""
    chosen: list[int] = []
    for index, node in enumerate(nodes):
        is_kept = reservation and index in reservation.spare and now + want.limit_s > reservation.start
        if not _covers(node.free, want.taken):
            continue
        if reservation and is_kept and not _covers(reservation.spare[index], want.taken):
            continue
        chosen.append(index)
        if len(chosen) == want.nodes:
            return chosen
    return None


def reserve(nodes: Sequence[Node], want: Want, now: float) -> Reservation:
    """The earliest nodes for what is wanted, if all that runs takes its whole time limit."""
    ready: list[tuple[float, int]] = []
    for index, node in enumerate(nodes):
        free, when = node.free, now
        for end, taken in sorted(node.ends.values()):
            if _covers(free, want.taken):
                break
            free, when = more(free, taken), end
        ready.append((when, index))
    kept = sorted(ready)[: want.nodes]
    start = kept[-1][0]
    spare = {}
    for _, index in kept:
        node = nodes[index]
        free = node.free
        for end, taken in node.ends.values():
            if end <= start:
                free = more(free, taken)
        spare[index] = less(free, want.taken)
    return Reservation(start=start, spare=spare)


def _covers(free: Amounts, taken: Amounts) -> bool:
    return free[0] >= taken[0] and free[1] >= taken[1] and free[2] >= taken[2] - 1e-6


def less(free: Amounts, taken: Amounts) -> Amounts:
    """What is left when `taken` is taken."""
    return (free[0] - taken[0], free[1] - taken[1], free[2] - taken[2])


def more(free: Amounts, taken: Amounts) -> Amounts:
    """What is free when `taken` is given back."""
    return (free[0] + taken[0], free[1] + taken[1], free[2] + taken[2])
