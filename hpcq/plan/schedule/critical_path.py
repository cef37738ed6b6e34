"""Longest chains of dependencies before and after each unit (heads and tails), in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hpcq.core.work_records import UnitKind
from hpcq.plan.units import PlannedUnit

_ORDER = {kind: place for place, kind in enumerate(UnitKind)}
"""A unit depends only on units of earlier kinds."""


def heads(units: Iterable[PlannedUnit], seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds before each unit's start without contention. Dependencies not among `units` have ended."""
    found: dict[str, float] = {}
    for unit in sorted(units, key=lambda one: _ORDER[one.kind]):
        known = (needed for needed in unit.depends_on if needed in found)
        found[unit.id] = max((found[needed] + seconds[needed] for needed in known), default=0.0)
    return found


def tails(units: Iterable[PlannedUnit], seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds from each unit's end to the end of all its dependents, without contention."""
    units = sorted(units, key=lambda one: _ORDER[one.kind], reverse=True)
    found = {unit.id: 0.0 for unit in units}
    for unit in units:
        for needed in unit.depends_on:
            if needed in found:
                found[needed] = max(found[needed], found[unit.id] + seconds[unit.id])
    return found
