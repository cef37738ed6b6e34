"""Job arrays: group units to run into arrays, one per kind, GPU class, shape and environment.

Dependencies: an evaluation depends on one quantization, and a Slurm array has one dependency. Two forms are exact, so
that a failed quantization blocks only its own evaluations. With `aftercorr`, element i of an array waits for element i
of another (one array per shard, variants in the order of the quantizations). With `afterok` on one element, there is
one array per variant with all its shards. The form with fewer arrays is used. For `aftercorr`, quantizations whose
evaluations differ in shape or number of shards go to different arrays.

Order: Slurm starts first what was submitted first. Arrays, and units in an array, are ordered by the seconds from their
start to the end of everything that depends on them, longest first. Units of unknown duration come last, in their
original order. All units of an array precede those of the next array, so units are also split into a few duration
bands, each with its own arrays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import log

from hpcq.core.addressing import address_of
from hpcq.core.unit_ids import is_kind
from hpcq.core.work_records import UnitKind
from hpcq.manifest.profiles import GpuClass, Profile
from hpcq.plan.placement.time_limits import max_limit_minutes, requested_minutes
from hpcq.plan.schedule.critical_path import tails
from hpcq.plan.schedule.resources import unit_memory_gib
from hpcq.plan.schedule.simulator import simulate
from hpcq.plan.units import PlannedArray, PlannedUnit, Shape

_BAND = 1.5
"""Maximum ratio of the longest to the shortest unit of an array."""
_BANDS = 5
"""Number of bands. Units shorter than the longest by _BAND ** (_BANDS - 1) share the last one."""

_ShardKey = tuple[Shape, str, int, int]


def make_arrays(
    units: Sequence[PlannedUnit], profile: Profile, *, active_arrays: Mapping[str, str] | None = None
) -> tuple[PlannedArray, ...]:
    """Return the arrays of `units`, each after those that it depends on.

    Args:
        units: Units to run now.
        profile: The cluster.
        active_arrays: Array name of each unit that was submitted before and has not ended.
    """
    active_arrays = active_arrays or {}
    seconds = {unit.id: unit.seconds or 0.0 for unit in units}
    remaining = {unit_id: seconds[unit_id] + tail for unit_id, tail in tails(units, seconds).items()}
    units = sorted(units, key=lambda unit: -remaining[unit.id])
    variants = [
        _order_arrays(
            _group_units(units, profile, active_arrays, bands),
            units,
            profile,
            active_arrays,
            remaining,
            widest_first=widest_first,
        )
        for bands in ({}, _bands(units, seconds))
        for widest_first in (False, True)
    ]
    if len({tuple(array.name for array in arrays) for arrays in variants}) == 1:
        return variants[0]
    return min(variants, key=lambda arrays: simulate(arrays, profile, seconds).wall_seconds)


def _group_units(
    units: Sequence[PlannedUnit], profile: Profile, active_arrays: Mapping[str, str], bands: Mapping[str, int]
) -> list[PlannedArray]:
    """Return all arrays except the merge's."""
    evaluations = [unit for unit in units if unit.kind is UnitKind.EVALUATE]
    staging = [_array([unit], profile) for unit in units if unit.kind is UnitKind.STAGE]
    stage_arrays = _stage_arrays(staging, active_arrays)
    quantize_arrays, aligned = _quantize_and_aligned(units, evaluations, profile, bands, stage_arrays)
    with_quantization = {unit.id for array in aligned for unit in array.units}
    others = [unit for unit in evaluations if unit.id not in with_quantization]
    return [
        *staging,
        *quantize_arrays,
        *aligned,
        *_other_evaluations(others, profile, active_arrays, bands, stage_arrays),
    ]


def _stage_arrays(staging: Sequence[PlannedArray], active_arrays: Mapping[str, str]) -> dict[str, str]:
    """Return the array of each unit that stages: of this submission, or of an earlier one that has not ended."""
    active = {unit_id: name for unit_id, name in active_arrays.items() if is_kind(unit_id, UnitKind.STAGE)}
    return active | {unit.id: array.name for array in staging for unit in array.units}


def _order_arrays(
    arrays: list[PlannedArray],
    units: Sequence[PlannedUnit],
    profile: Profile,
    active_arrays: Mapping[str, str],
    remaining: Mapping[str, float],
    *,
    widest_first: bool,
) -> tuple[PlannedArray, ...]:
    """Order `arrays` by remaining time or by nodes, largest first, each after its dependency. Append the merge."""
    rank = {
        array.name: (array.shape.nodes if widest_first else 0, max(remaining[unit.id] for unit in array.units))
        for array in arrays
    }
    for array in reversed(arrays):  # the dependents of an array come after it
        for name in array.depends_on:
            if name in rank:
                rank[name] = max(rank[name], rank[array.name])
    ordered = sorted(arrays, key=lambda array: (-rank[array.name][0], -rank[array.name][1]))
    for unit in units:
        if unit.kind is UnitKind.MERGE:
            # An earlier merge ends first: the last one to write the results has all of them.
            earlier = {active_arrays[needed] for needed in (*unit.depends_on, unit.id) if needed in active_arrays}
            ordered.append(_merge_array(unit, profile, [array.name for array in ordered], sorted(earlier)))
    return tuple(ordered)


def _bands(units: Sequence[PlannedUnit], seconds: Mapping[str, float]) -> dict[str, int]:
    """Return each unit's band, 0 for the longest. A quantization has the first band of its evaluations."""
    longest = max(seconds.values(), default=0.0)
    bands: dict[str, int] = {}
    for unit in units:
        duration_s = seconds[unit.id]
        bands[unit.id] = min(_BANDS - 1, int(log(longest / duration_s, _BAND))) if duration_s else _BANDS
    of_dependents: dict[str, int] = {}
    for unit in units:
        for needed in unit.depends_on if unit.kind is not UnitKind.MERGE else ():
            of_dependents[needed] = min(of_dependents.get(needed, _BANDS), bands[unit.id])
    return {**bands, **of_dependents}


def _quantize_and_aligned(
    units: Iterable[PlannedUnit],
    evaluations: Sequence[PlannedUnit],
    profile: Profile,
    bands: Mapping[str, int],
    stage_arrays: Mapping[str, str],
) -> tuple[list[PlannedArray], list[PlannedArray]]:
    """Return the arrays of quantizations, and the arrays of evaluations that depend on one of them."""
    shards_of: dict[str, dict[_ShardKey, PlannedUnit]] = defaultdict(dict)
    for unit in evaluations:
        for needed in unit.depends_on:
            shards_of[needed][_shard_key(unit)] = unit
    groups: dict[tuple[Shape, str, tuple[_ShardKey, ...], int | None], list[PlannedUnit]] = defaultdict(list)
    for unit in units:
        if unit.kind is UnitKind.QUANTIZE:
            groups[unit.shape, unit.environment, tuple(sorted(shards_of[unit.id])), bands.get(unit.id)].append(unit)
    quantize_arrays, aligned = [], []
    for (_, _, keys, _), members in groups.items():
        array = _array_after_staging(members, profile, stage_arrays)
        quantize_arrays.append(array)
        if len(keys) <= len(members):
            for key in keys:
                dependents = [shards_of[unit.id][key] for unit in members]
                aligned.append(_array(dependents, profile, depends_on=(array.name,), dependency="aftercorr"))
            continue
        for element, unit in enumerate(members):
            aligned += [
                _array(shards, profile, depends_on=(array.name,), dependency="afterok", element=element)
                for shards in _by_shape_and_environment(shards_of[unit.id][key] for key in keys)
            ]
    return quantize_arrays, aligned


def _by_shape_and_environment(units: Iterable[PlannedUnit]) -> Iterable[list[PlannedUnit]]:
    """Group `units` by shape and environment, which the elements of an array share."""
    groups: dict[tuple[Shape, str], list[PlannedUnit]] = defaultdict(list)
    for unit in units:
        groups[unit.shape, unit.environment].append(unit)
    return groups.values()


def _shard_key(unit: PlannedUnit) -> _ShardKey:
    shard = unit.shard
    if shard is None:
        raise TypeError(f"{unit.id} has no shard")
    return (unit.shape, unit.environment, shard.count, shard.index)


def _other_evaluations(
    evaluations: Iterable[PlannedUnit],
    profile: Profile,
    active_arrays: Mapping[str, str],
    bands: Mapping[str, int],
    stage_arrays: Mapping[str, str],
) -> list[PlannedArray]:
    """Return arrays of evaluations whose checkpoint exists, or is being written by an array submitted before."""
    groups: dict[tuple[Shape, str, tuple[str, ...], int | None], list[PlannedUnit]] = defaultdict(list)
    for unit in evaluations:
        needed = [name for name in unit.depends_on if name in active_arrays and name not in stage_arrays]
        earlier = tuple(sorted({active_arrays[name] for name in needed}))
        groups[unit.shape, unit.environment, earlier, bands.get(unit.id)].append(unit)
    return [
        _array(members, profile, depends_on=earlier, dependency="afterany")
        if earlier  # quantizations, which wait for the staging themselves
        else _array_after_staging(members, profile, stage_arrays)
        for (_, _, earlier, _), members in groups.items()
    ]


def _array_after_staging(
    units: Sequence[PlannedUnit], profile: Profile, stage_arrays: Mapping[str, str]
) -> PlannedArray:
    """Return an array that waits for the success of the unit that stages its input, if that is not done."""
    needed = {stage_arrays[name] for unit in units for name in unit.depends_on if name in stage_arrays}
    return _array(units, profile, depends_on=tuple(sorted(needed)), dependency="afterok" if needed else "none")


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
    """Return an array, named by kind, GPU class and a digest of its units, which makes the name unique."""
    first = units[0]
    offer = profile.gpu_classes[first.shape.gpu_class]
    max_minutes = max_limit_minutes(profile, first.shape.gpu_class)
    limits = (
        [requested_minutes(unit.padded_seconds, max_minutes) for unit in units]
        if profile.scheduler == "slurm"
        else [max_minutes]
    )
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
        memory_gib=unit_memory_gib(profile, first.shape),
        memory_option=profile.options_of(first.shape.gpu_class).memory_option or "mem",
    )


def _throttle(offer: GpuClass, shape: Shape) -> int | None:
    """Return the profile's throttle; for units of several nodes, not more than fit on the class at once.

    Slurm reserves idle nodes for an element that waits for resources, but not for an element that waits for its array's
    throttle. Without this limit, one of three nodes would stay idle during units of two nodes.
    """
    if shape.nodes == 1:
        return offer.throttle
    per_node = max(1, offer.gpus_per_node // shape.gpus_per_node) if shape.gpus_per_node else 1
    fitting = max(1, offer.nodes * per_node // shape.nodes)
    return min(fitting, offer.throttle or fitting)
