"""What must pass before a unit and after it: the chains quantize, evaluate, merge that units' needs make.

Knows units and seconds; must not know clusters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hpcq.core.work import Kind
from hpcq.plan.units import PlannedUnit

_ORDER = {kind: place for place, kind in enumerate(Kind)}
"""A unit needs units of earlier kinds only."""


def heads(units: Iterable[PlannedUnit], seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds before each unit's start, if nothing waits for a place; what is not among `units` has ended."""
    found: dict[str, float] = {}
    for unit in sorted(units, key=lambda one: _ORDER[one.kind]):
        known = (needed for needed in unit.depends_on if needed in found)
        found[unit.id] = max((found[needed] + seconds[needed] for needed in known), default=0.0)
    return found


def tails(units: Iterable[PlannedUnit], seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds from each unit's end to the end of all that needs it, if nothing waits for a place."""
    units = sorted(units, key=lambda one: _ORDER[one.kind], reverse=True)
    found = {unit.id: 0.0 for unit in units}
    for unit in units:
        for needed in unit.depends_on:
            if needed in found:
                found[needed] = max(found[needed], found[unit.id] + seconds[unit.id])
    return found
