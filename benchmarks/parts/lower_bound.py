"""Lower bound of a plan's makespan, valid for every order of submission and every scheduler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor

from hpcq.manifest.profiles import Profile
from hpcq.plan.schedule.critical_path import heads, tails
from hpcq.plan.schedule.resources import node_resources, unit_nodes, unit_resources
from hpcq.plan.units import PlannedArray, PlannedUnit

_STEPS = range(8)  # values of k; most nodes have at most 8 GPUs
_HALF = 0.5
_THRESHOLDS = 16  # number of tails and heads that are tried
_ROUNDS = 16  # further rounds hardly change the bound
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class _Load:
    """Load of a unit on its class.

    Attributes:
        seconds: Seconds of the unit.
        head: Minimum seconds before it.
        tail: Minimum seconds after it.
        share: Its share of all nodes of the class.
    """

    seconds: float
    head: float
    tail: float
    share: float


def lower_bound(arrays: Sequence[PlannedArray], profile: Profile, seconds: Mapping[str, float]) -> float:
    """Return a lower bound in seconds for `arrays` with their placements: the maximum of these bounds.

    - The longest chain of units that depend on each other.
    - Units of which no two can run at the same time, because one depends on the other or their class has no room for
      both: the sum of their seconds.
    - For each class and size: at most m units of this size or more run at the same time, so they form m tracks. Of the
      j·m + 1 longest units, one track has j + 1. These take at least the sum of the j + 1 shortest of them, after the
      smallest head (minimum time before a unit) and before the smallest tail (minimum time after it).
    - For each array with a throttle the same, with that number of tracks; and head + sum of seconds / throttle + tail.
    - For each class, resource and k: head + sum of seconds · nodes · f(share of a node) / nodes + tail, over all units
      with at least this head (or at least this tail). None of them runs before the smallest of their heads, or after
      the end minus the smallest of their tails, and in between no node is more than full. With f(x) = x this is the
      work divided by the capacity. f_k(x) = x if (k + 1)·x is an integer, else floor((k + 1)·x) / k, is a dual
      feasible function (Fekete and Schepers, Mathematical Programming 91, 2001): the sum over shares that fit on a node
      together is at most 1. It counts capacity that indivisible units leave idle. With k = 1 a unit of more than half a
      node counts as the whole node, because a second one does not fit. Units that take more than half of each of their
      nodes share none, so f_k also applies to their nodes / all nodes: on five nodes, two units of three nodes never
      run at the same time.
    """
    units = [unit for array in arrays for unit in array.units]
    before, after = heads(units, seconds), tails(units, seconds)
    bound = max((before[unit.id] + seconds[unit.id] for unit in units), default=0.0)
    for array in arrays:
        if array.throttle:
            names = [unit.id for unit in array.units]
            bound = max(bound, _pigeonholes(names, array.throttle, seconds, before, after))
            bound = max(
                bound,
                _busy(
                    _Load(seconds=seconds[name], head=before[name], tail=after[name], share=1 / array.throttle)
                    for name in names
                ),
            )
    by_class: dict[str, list[PlannedUnit]] = defaultdict(list)
    for unit in units:
        by_class[unit.shape.gpu_class].append(unit)
    for members in by_class.values():
        for shares in _shares(members, profile):
            loads = [
                _Load(seconds=seconds[unit.id], head=before[unit.id], tail=after[unit.id], share=share)
                for unit, share in zip(members, shares, strict=True)
            ]
            bound = max(bound, _busy(loads))
        bound = max([bound, *_tracks(members, profile, seconds, before, after)])
    return max(bound, _one_at_a_time(units, profile, seconds))


def _one_at_a_time(units: Sequence[PlannedUnit], profile: Profile, seconds: Mapping[str, float]) -> float:
    """Return the sum of mutually exclusive units, selected greedily by seconds times nodes."""
    chosen: list[PlannedUnit] = []
    for unit in sorted(units, key=lambda one: -seconds[one.id] * one.shape.nodes):
        if all(_exclude(unit, other, profile) for other in chosen):
            chosen.append(unit)
    return sum(seconds[unit.id] for unit in chosen)


def _exclude(one: PlannedUnit, other: PlannedUnit, profile: Profile) -> bool:
    """Return whether the two can never run at the same time."""
    if one.id in other.depends_on or other.id in one.depends_on:
        return True
    if one.shape.gpu_class != other.shape.gpu_class:
        return False
    takes = zip(unit_resources(profile, one.shape), unit_resources(profile, other.shape), strict=True)
    share_a_node = all(
        first + second <= has + _ROUNDING
        for (first, second), has in zip(takes, node_resources(profile, one.shape.gpu_class), strict=True)
    )
    together = unit_nodes(profile, one.shape) + unit_nodes(profile, other.shape)
    return not share_a_node and together > profile.gpu_classes[one.shape.gpu_class].nodes


def _tracks(
    units: Sequence[PlannedUnit],
    profile: Profile,
    seconds: Mapping[str, float],
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> Iterator[float]:
    """Yield pigeonhole bounds of units with a minimum size, and of those with a minimum tail or head."""
    gpu_class = units[0].shape.gpu_class
    nodes, node = profile.gpu_classes[gpu_class].nodes, node_resources(profile, gpu_class)
    sizes = {(unit_resources(profile, unit.shape), unit_nodes(profile, unit.shape)) for unit in units}
    for taken, wide in sizes:
        on_a_node = min(int(has / part + _ROUNDING) for has, part in zip(node, taken, strict=True) if part)
        tracks = max(1, nodes * on_a_node // wide)
        large = [
            unit.id
            for unit in units
            if unit_nodes(profile, unit.shape) >= wide
            and all(part >= least for part, least in zip(unit_resources(profile, unit.shape), taken, strict=True))
        ]
        for known in (after, before):
            values = sorted({known[unit] for unit in large})
            for least in values[:: max(1, len(values) // _THRESHOLDS)]:
                yield _pigeonholes([unit for unit in large if known[unit] >= least], tracks, seconds, before, after)


def _pigeonholes(
    units: Sequence[str],
    tracks: int,
    seconds: Mapping[str, float],
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> float:
    longest = sorted(units, key=lambda unit: -seconds[unit])
    around = min(before[unit] for unit in units) + min(after[unit] for unit in units)
    bound = 0.0
    for more in range(1, min(_ROUNDS, (len(longest) - 1) // tracks) + 1):
        last = more * tracks + 1
        bound = max(bound, around + sum(seconds[unit] for unit in longest[last - more - 1 : last]))
    return bound


def _busy(loads: Iterable[_Load]) -> float:
    """Return the maximum of head + work + tail over units with a minimum head, and over those with a minimum tail."""
    loads, bound = list(loads), 0.0
    for is_head in (True, False):
        work, least = 0.0, float("inf")
        for load in sorted(loads, key=lambda one: one.head if is_head else one.tail, reverse=True):
            work += load.seconds * load.share
            least = min(least, load.tail if is_head else load.head)
            bound = max(bound, work + least + (load.head if is_head else load.tail))
    return bound


def _shares(units: Sequence[PlannedUnit], profile: Profile) -> Iterator[list[float]]:
    """Yield each unit's share of the class, for each resource of a node and each f."""
    gpu_class = units[0].shape.gpu_class
    nodes, node = profile.gpu_classes[gpu_class].nodes, node_resources(profile, gpu_class)
    for amount, has in enumerate(node):
        if not has:
            continue
        parts = {unit.shape: unit_resources(profile, unit.shape)[amount] / has for unit in units}
        for k in _STEPS:
            of = {
                shape: unit_nodes(profile, shape) * (_dual_feasible(k, part) if k else part) / nodes
                for shape, part in parts.items()
            }
            yield [of[unit.shape] for unit in units]
            if k and nodes > 1:
                whole = {
                    shape: _dual_feasible(k, unit_nodes(profile, shape) / nodes) if part > _HALF else 0.0
                    for shape, part in parts.items()
                }
                yield [whole[unit.shape] for unit in units]


def _dual_feasible(k: int, part: float) -> float:
    scaled = (k + 1) * part
    return part if abs(scaled - round(scaled)) < _ROUNDING else floor(scaled) / k
