"""What no order of work and no scheduler can be faster than: a bound of a plan's wall time from below.

Knows units, a profile and seconds; must not know arrays' order, nor how anything is scheduled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor

from hpcq.manifest.profiles import Profile
from hpcq.plan.schedule.critical_path import heads, tails
from hpcq.plan.schedule.resources import node_of, nodes_of, taken_of
from hpcq.plan.units import PlannedArray, PlannedUnit

_STEPS = range(8)  # of k; nodes have 8 GPUs at most as a rule
_HALF = 0.5
_THRESHOLDS = 16  # of tails and heads that are tried
_ROUNDS = 16  # behind which single units matter little
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class _Load:
    """A unit's seconds, the seconds that must pass before it and after it, and its share of all nodes of its class."""

    seconds: float
    head: float
    tail: float
    share: float


def lower_bound(arrays: Sequence[PlannedArray], profile: Profile, seconds: Mapping[str, float]) -> float:
    """Seconds that `arrays` take at least where they are placed, whatever the order: the greatest of these.

    - The longest chain of units that need each other: each begins when the one before it has ended.
    - Units of which no two can run at once, because one needs the other or a class has no room for both: their sum.
    - For each class and size: at most m units of at least that size are there at once, so they form m tracks; of the
      j·m + 1 longest one track has j + 1, which take at least the sum of the j + 1 shortest of these, after the
      smallest head (what must pass before a unit) and before the smallest tail (what must pass after it).
    - For each array with a throttle the same, with as many tracks; and head + sum of seconds / throttle + tail.
    - For each class, amount and k: head + sum of seconds · nodes · f(share of a node) / nodes + tail, over all units
      before which at least `head` passes (or after which at least `tail` does). None of them is there before the
      smallest of their heads, or after the end less the smallest of their tails, and in between no node is more than
      full. f(x) = x makes it the work over what there is. f_k(x) = x where (k + 1)·x is whole, else
      floor((k + 1)·x) / k, keeps shares that fit on a node together at 1 in sum (a dual feasible function: Fekete and
      Schepers, Mathematical Programming 91, 2001), and counts what whole units must leave idle: with k = 1 a unit of
      more than half a node counts as the whole node, for no second such one fits beside it. Units that take more than
      half of each of their nodes share none, so f_k holds of their nodes / all nodes, too: of five nodes, units of
      three are never there twice.
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
    """The sum of units that exclude each other, gathered greedily from those that last long on many nodes."""
    chosen: list[PlannedUnit] = []
    for unit in sorted(units, key=lambda one: -seconds[one.id] * one.shape.nodes):
        if all(_exclude(unit, other, profile) for other in chosen):
            chosen.append(unit)
    return sum(seconds[unit.id] for unit in chosen)


def _exclude(one: PlannedUnit, other: PlannedUnit, profile: Profile) -> bool:
    """Whether the two can never run at once."""
    if one.id in other.depends_on or other.id in one.depends_on:
        return True
    if one.shape.gpu_class != other.shape.gpu_class:
        return False
    takes = zip(taken_of(profile, one.shape), taken_of(profile, other.shape), strict=True)
    share_a_node = all(
        first + second <= has + _ROUNDING
        for (first, second), has in zip(takes, node_of(profile, one.shape.gpu_class), strict=True)
    )
    together = nodes_of(profile, one.shape) + nodes_of(profile, other.shape)
    return not share_a_node and together > profile.gpu_classes[one.shape.gpu_class].nodes


def _tracks(
    units: Sequence[PlannedUnit],
    profile: Profile,
    seconds: Mapping[str, float],
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> Iterator[float]:
    """Bounds by pigeonholes, of units of at least a size, and of those of them with at least a tail or a head."""
    gpu_class = units[0].shape.gpu_class
    nodes, node = profile.gpu_classes[gpu_class].nodes, node_of(profile, gpu_class)
    sizes = {(taken_of(profile, unit.shape), nodes_of(profile, unit.shape)) for unit in units}
    for taken, wide in sizes:
        on_a_node = min(int(has / part + _ROUNDING) for has, part in zip(node, taken, strict=True) if part)
        tracks = max(1, nodes * on_a_node // wide)
        large = [
            unit.id
            for unit in units
            if nodes_of(profile, unit.shape) >= wide
            and all(part >= least for part, least in zip(taken_of(profile, unit.shape), taken, strict=True))
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
    """The greatest of head + work + tail over the units with at least a head, and over those with at least a tail."""
    loads, bound = list(loads), 0.0
    for is_head in (True, False):
        work, least = 0.0, float("inf")
        for load in sorted(loads, key=lambda one: one.head if is_head else one.tail, reverse=True):
            work += load.seconds * load.share
            least = min(least, load.tail if is_head else load.head)
            bound = max(bound, work + least + (load.head if is_head else load.tail))
    return bound


def _shares(units: Sequence[PlannedUnit], profile: Profile) -> Iterator[list[float]]:
    """Each unit's share of the class, by amount of a node and by f."""
    gpu_class = units[0].shape.gpu_class
    nodes, node = profile.gpu_classes[gpu_class].nodes, node_of(profile, gpu_class)
    for amount, has in enumerate(node):
        if not has:
            continue
        parts = {unit.shape: taken_of(profile, unit.shape)[amount] / has for unit in units}
        for k in _STEPS:
            of = {
                shape: nodes_of(profile, shape) * (_dual_feasible(k, part) if k else part) / nodes
                for shape, part in parts.items()
            }
            yield [of[unit.shape] for unit in units]
            if k and nodes > 1:
                whole = {
                    shape: _dual_feasible(k, nodes_of(profile, shape) / nodes) if part > _HALF else 0.0
                    for shape, part in parts.items()
                }
                yield [whole[unit.shape] for unit in units]


def _dual_feasible(k: int, part: float) -> float:
    scaled = (k + 1) * part
    return part if abs(scaled - round(scaled)) < _ROUNDING else floor(scaled) / k
