"""Units that are to run become arrays, one for each kind, GPU class, shape and environment.

An evaluation needs one quantization, and a Slurm array has one dependency. Two ways say it exactly, so that a failed
quantization holds up its own evaluations alone: `aftercorr`, by which element i of an array waits for element i of
another (one array a shard, its variants in the order of the quantizations), or `afterok` on one element (one array a
variant, of all its shards). The one that makes fewer arrays is taken. For the first, quantizations whose evaluations
differ in shape or number of shards go to different arrays.

Slurm starts what was submitted first, so what ends last comes first: arrays, and units in an array, by the seconds from
their start to the end of all that needs them. Units of unknown seconds keep their order, after the others. An array's
last unit comes before the next array's first, so long units and short ones go to different arrays, a few bands of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import log

from hpcq.core.work import Kind, address_of
from hpcq.manifest.profiles import GpuClass, Profile
from hpcq.plan.placement.time_limits import asked_minutes, limit_minutes
from hpcq.plan.schedule.critical_path import tails
from hpcq.plan.schedule.simulator import timeline
from hpcq.plan.units import PlannedArray, PlannedUnit, Shape

_BAND = 1.5
"""Units of an array last so many times as long as each other at most."""
_BANDS = 5
"""All that is shorter than the longest by _BAND ** (_BANDS - 1) shares the last one: little is lost by its order."""

_ShardPlace = tuple[Shape, str, int, int]


def make_arrays(
    units: Sequence[PlannedUnit], profile: Profile, *, under_way: Mapping[str, str] | None = None
) -> tuple[PlannedArray, ...]:
    """Arrays of `units` (those which are to run now), each after those that it depends on.

    under_way: units that were handed over earlier and have not ended, and the array that each is an element of.
    """
    under_way = under_way or {}
    seconds = {unit.id: unit.seconds or 0.0 for unit in units}
    remaining = {unit_id: seconds[unit_id] + tail for unit_id, tail in tails(units, seconds).items()}
    units = sorted(units, key=lambda unit: -remaining[unit.id])
    ways = [
        _in_order(
            _gathered(units, profile, under_way, bands), units, profile, under_way, remaining, widest_first=widest
        )
        for bands in ({}, _bands(units, seconds))
        for widest in (False, True)
    ]
    different = list(dict.fromkeys(tuple(array.name for array in arrays) for arrays in ways))
    if len(different) == 1:
        return ways[0]
    return min(ways, key=lambda arrays: timeline(arrays, profile, seconds).wall_seconds)


def _gathered(
    units: Sequence[PlannedUnit], profile: Profile, under_way: Mapping[str, str], bands: Mapping[str, int]
) -> list[PlannedArray]:
    """All arrays but the merge's."""
    evaluations = [unit for unit in units if unit.kind is Kind.EVALUATE]
    quantize_arrays, aligned = _quantize_and_aligned(units, evaluations, profile, bands)
    corresponding = {unit.id for array in aligned for unit in array.units}
    free = [unit for unit in evaluations if unit.id not in corresponding]
    return [*quantize_arrays, *aligned, *_free_evaluations(free, profile, under_way, bands)]


def _in_order(
    arrays: list[PlannedArray],
    units: Sequence[PlannedUnit],
    profile: Profile,
    under_way: Mapping[str, str],
    remaining: Mapping[str, float],
    *,
    widest_first: bool,
) -> tuple[PlannedArray, ...]:
    """`arrays` from what ends last on, or from the most nodes on, each behind the one that it waits for; the merge."""
    rank = {
        array.name: (array.shape.nodes if widest_first else 0, max(remaining[unit.id] for unit in array.units))
        for array in arrays
    }
    for array in arrays:
        for name in array.depends_on:
            if name in rank:
                rank[name] = max(rank[name], rank[array.name])
    ordered = sorted(arrays, key=lambda array: (-rank[array.name][0], -rank[array.name][1]))
    for unit in units:
        if unit.kind is Kind.MERGE:
            earlier = {under_way[needed] for needed in unit.depends_on if needed in under_way}
            ordered.append(_merge_array(unit, profile, [array.name for array in ordered], sorted(earlier)))
    return tuple(ordered)


def _bands(units: Sequence[PlannedUnit], seconds: Mapping[str, float]) -> dict[str, int]:
    """Of each unit, from the longest on; of a quantization that of its evaluations, whose arrays follow its own."""
    longest = max(seconds.values(), default=0.0)
    bands: dict[str, int] = {}
    for unit in units:
        lasts = seconds[unit.id]
        bands[unit.id] = min(_BANDS - 1, int(log(longest / lasts, _BAND))) if lasts else _BANDS
    followers: dict[str, int] = {}
    for unit in units:
        for needed in unit.depends_on if unit.kind is not Kind.MERGE else ():
            followers[needed] = min(followers.get(needed, _BANDS), bands[unit.id])
    return {**bands, **followers}


def _quantize_and_aligned(
    units: Iterable[PlannedUnit], evaluations: Sequence[PlannedUnit], profile: Profile, bands: Mapping[str, int]
) -> tuple[list[PlannedArray], list[PlannedArray]]:
    shards_of: dict[str, dict[_ShardPlace, PlannedUnit]] = defaultdict(dict)
    for unit in evaluations:
        for needed in unit.depends_on:
            shards_of[needed][_shard_place(unit)] = unit
    groups: dict[tuple[Shape, str, tuple[_ShardPlace, ...], int | None], list[PlannedUnit]] = defaultdict(list)
    for unit in units:
        if unit.kind is Kind.QUANTIZE:
            groups[unit.shape, unit.environment, tuple(sorted(shards_of[unit.id])), bands.get(unit.id)].append(unit)
    quantize_arrays, aligned = [], []
    for (_, _, places, _), members in groups.items():
        array = _array(members, profile)
        quantize_arrays.append(array)
        if len(places) <= len(members):
            for place in places:
                followers = [shards_of[unit.id][place] for unit in members]
                aligned.append(_array(followers, profile, depends_on=(array.name,), dependency="aftercorr"))
            continue
        for element, unit in enumerate(members):
            aligned += [
                _array(shards, profile, depends_on=(array.name,), dependency="afterok", element=element)
                for shards in _alike(shards_of[unit.id][place] for place in places)
            ]
    return quantize_arrays, aligned


def _alike(units: Iterable[PlannedUnit]) -> Iterable[list[PlannedUnit]]:
    """`units` by shape and environment, which the elements of an array share."""
    groups: dict[tuple[Shape, str], list[PlannedUnit]] = defaultdict(list)
    for unit in units:
        groups[unit.shape, unit.environment].append(unit)
    return groups.values()


def _shard_place(unit: PlannedUnit) -> _ShardPlace:
    shard = unit.shard
    if shard is None:
        raise TypeError(f"{unit.id} has no shard")
    return (unit.shape, unit.environment, shard.count, shard.index)


def _free_evaluations(
    evaluations: Iterable[PlannedUnit], profile: Profile, under_way: Mapping[str, str], bands: Mapping[str, int]
) -> list[PlannedArray]:
    """Evaluations whose checkpoint is there, or is being made by an array handed over earlier."""
    groups: dict[tuple[Shape, str, tuple[str, ...], int | None], list[PlannedUnit]] = defaultdict(list)
    for unit in evaluations:
        earlier = tuple(sorted({under_way[needed] for needed in unit.depends_on if needed in under_way}))
        groups[unit.shape, unit.environment, earlier, bands.get(unit.id)].append(unit)
    return [
        _array(members, profile, depends_on=earlier, dependency="afterany" if earlier else "none")
        for (_, _, earlier, _), members in groups.items()
    ]


def _merge_array(unit: PlannedUnit, profile: Profile, new: list[str], earlier: list[str]) -> PlannedArray:
    depends_on = (*new, *earlier)
    return _array([unit], profile, depends_on=depends_on, dependency="afterany" if depends_on else "none")


def _array(
    units: Sequence[PlannedUnit],
    profile: Profile,
    *,
    depends_on: tuple[str, ...] = (),
    dependency: str = "none",
    element: int | None = None,
) -> PlannedArray:
    """An array whose name says what it holds: kind, class, and a digest of its units, so that no two share a name."""
    first = units[0]
    offer = profile.gpu_classes[first.shape.gpu_class]
    most = limit_minutes(profile, first.shape.gpu_class)
    limits = [asked_minutes(unit.ample_seconds, most) for unit in units] if profile.scheduler == "slurm" else [most]
    digest = address_of([unit.id for unit in units])[:6]
    return PlannedArray(
        name=f"{first.kind}-{first.shape.gpu_class}-{digest}",
        kind=first.kind,
        shape=first.shape,
        environment=first.environment,
        units=tuple(units),
        throttle=_throttle(offer, first.shape),
        time_limit_minutes=max(limits),
        depends_on=depends_on,
        dependency=dependency,
        element=element,
    )


def _throttle(offer: GpuClass, shape: Shape) -> int | None:
    """The profile's; where a unit takes several nodes, no more than there is room for.

    Slurm keeps nodes idle for an element that waits for room, not for one that its array's throttle holds back: of
    three nodes, one would stand idle beside units of two.
    """
    if shape.nodes == 1:
        return offer.throttle
    on_a_node = max(1, offer.gpus_per_node // shape.gpus_per_node) if shape.gpus_per_node else 1
    fit = max(1, offer.nodes * on_a_node // shape.nodes)
    return min(fit, offer.throttle or fit)
