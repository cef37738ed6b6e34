"""What is on disk, and so done whatever a scheduler says: checkpoints, finished evaluations, merged results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hpcq.errors import RunIncomplete, SegmentDamaged
from hpcq.layout import COMPLETE, RunLayout
from hpcq.store import Results, read_results
from hpcq.units import Kind


def committed_units(layout: RunLayout, units: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Ids of the units (rows of the plan's document) whose result is on disk, whole."""
    results = _current_results(layout)
    lacking = {item["variant"] for item in results.merge["missing_from"]} if results else set()
    return frozenset(unit["id"] for unit in units if _is_committed(layout, unit, results, lacking))


def _is_committed(layout: RunLayout, unit: Mapping[str, Any], results: Results | None, lacking: Iterable[str]) -> bool:
    match unit["kind"]:
        case Kind.QUANTIZE:
            return Path(unit["checkpoint"]).is_dir()
        case Kind.EVALUATE:
            # A later merge that misses responses of the variant proves that segments were lost since.
            return unit["variant"] not in lacking and _completed(layout, unit["id"]) == unit["address"]
        case Kind.MERGE:
            return results is not None
    return False


def _completed(layout: RunLayout, unit_id: str) -> str | None:
    """The address of the responses that the unit's worker says are all committed."""
    try:
        told = json.loads((layout.unit_segments(unit_id) / COMPLETE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(told["address"]) if isinstance(told, dict) and "address" in told else None


def _current_results(layout: RunLayout) -> Results | None:
    """The merged results, unless an evaluation has finished after them and they lack something.

    Responses never change once committed, so results that lack nothing stay right for ever.
    """
    try:
        results = read_results(layout.results)
    except (RunIncomplete, SegmentDamaged):
        return None
    if not results.merge["missing"]:
        return results
    merged = layout.results.stat().st_mtime_ns
    finished = (path.stat().st_mtime_ns for path in layout.segments.glob(f"*/{COMPLETE}"))
    return results if all(time <= merged for time in finished) else None
