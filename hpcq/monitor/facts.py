"""What is on disk, and so done whatever a scheduler says: checkpoints, finished evaluations, merged results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hpcq.errors import RunIncomplete, SegmentDamaged
from hpcq.layout import RunLayout
from hpcq.units import Kind

COMPLETE = "complete.json"
"""The file with which an evaluation worker says that every request of its unit is answered and committed."""


def committed_units(layout: RunLayout, units: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Ids of the units (rows of the plan's document) whose result is on disk, whole."""
    return frozenset(unit["id"] for unit in units if _is_committed(layout, unit))


def _is_committed(layout: RunLayout, unit: Mapping[str, Any]) -> bool:
    match unit["kind"]:
        case Kind.QUANTIZE:
            return Path(unit["checkpoint"]).is_dir()
        case Kind.EVALUATE:
            return (layout.unit_segments(unit["id"]) / COMPLETE).is_file()
        case Kind.MERGE:
            return results_are_current(layout)
    return False


def results_are_current(layout: RunLayout) -> bool:
    """Whether the merged results hold every expected response, or at least every one that was there to be merged.

    Responses never change once committed, so results that lack nothing stay right for ever; others are current until an
    evaluation finishes after them.
    """
    from hpcq.store import read_results

    try:
        results = read_results(layout.results)
    except (RunIncomplete, SegmentDamaged):
        return False
    if not results.merge["missing"]:
        return True
    merged = layout.results.stat().st_mtime_ns
    return all(path.stat().st_mtime_ns <= merged for path in layout.segments.glob(f"*/{COMPLETE}"))
