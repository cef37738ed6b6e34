"""Units whose result is on disk: staged files, checkpoints, evaluations, merged results. Slurm is not queried."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from hpcq.core.completion_marker import CompletionMarker, read_completion_marker
from hpcq.core.errors import RunIncompleteError, SegmentCorruptError
from hpcq.core.files import list_folder
from hpcq.core.paths import RunLayout
from hpcq.core.unit_ids import UnitId
from hpcq.core.work_records import UnitKind
from hpcq.monitor.units import Unit
from hpcq.store import Results, read_results


def completed_units(layout: RunLayout, units: Sequence[Unit]) -> frozenset[str]:
    """Return the ids of the units whose complete result is on disk.

    Args:
        layout: Paths of the run.
        units: The units of the plan.

    Raises:
        StorageError: A file or folder cannot be read.
    """
    results = _read_results(layout)
    done: set[str] = set()
    for variant, shards in _evaluations_by_variant(units).items():
        address = shards[0].address
        earlier = [
            group for count, group in _shards_on_disk(layout, variant).items() if count == len(group) != len(shards)
        ]
        is_finished = any(_completed_shards(layout, results, variant, group, address) == group for group in earlier)
        present = {unit.id for unit in shards}
        done |= present if is_finished else _completed_shards(layout, results, variant, present, address)
    done |= {unit.id for unit in units if unit.checkpoint is not None and Path(unit.checkpoint).is_dir()}
    done |= {unit.id for unit in units if unit.kind is UnitKind.STAGE and _has_staged(layout, unit)}
    if results is not None and _is_current(layout, results, _evaluations_by_variant(units)):
        done |= {unit.id for unit in units if unit.kind is UnitKind.MERGE}
    return frozenset(done)


def _has_staged(layout: RunLayout, unit: Unit) -> bool:
    marker = read_completion_marker(layout.unit_segments(unit.id))
    return marker is not None and marker.address == unit.address


def _evaluations_by_variant(units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """Return the evaluation units of the plan by variant."""
    found: dict[str, list[Unit]] = {}
    for unit in units:
        if unit.kind is UnitKind.EVALUATE and unit.variant_id is not None:
            found.setdefault(unit.variant_id, []).append(unit)
    return found


def _shards_on_disk(layout: RunLayout, variant: str) -> dict[int, set[str]]:
    """Return the ids of the variant's shards with a folder, from any plan of the run, by number of shards."""
    found: dict[int, set[str]] = {}
    for folder in list_folder(layout.segments):
        unit = UnitId.parse(folder.name)
        if unit and (unit.kind, unit.subject) == (UnitKind.EVALUATE, variant):
            found.setdefault(unit.shard.count, set()).add(folder.name)
    return found


def _completed_shards(
    layout: RunLayout, results: Results | None, variant: str, shards: Collection[str], address: str | None
) -> set[str]:
    """Return those of `shards` with a valid completion marker for `address`.

    If a merge read the markers of all of these shards and responses of the variant were still missing, segments were
    lost after they had been committed. Then these markers are invalid until a new attempt replaces them.
    """
    has_missing = results is not None and any(item["variant"] == variant for item in results.merge["missing_from"])
    merged = results.completions if results and has_missing else {}
    invalid = merged if all(shard in merged for shard in shards) else {}
    markers = _completion_markers(layout, shards)
    return {
        shard for shard, marker in markers.items() if marker.address == address and marker.digest != invalid.get(shard)
    }


def _completion_markers(layout: RunLayout, shards: Iterable[str]) -> dict[str, CompletionMarker]:
    return {shard: marker for shard in shards if (marker := read_completion_marker(layout.unit_segments(shard)))}


def _has_merged(results: Results, markers: Mapping[str, CompletionMarker]) -> bool:
    return all(results.completions.get(unit) == marker.digest for unit, marker in markers.items())


def _read_results(layout: RunLayout) -> Results | None:
    try:
        return read_results(layout.results)
    except (RunIncompleteError, SegmentCorruptError):
        return None


def _is_current(layout: RunLayout, results: Results, variants: Iterable[str]) -> bool:
    """Return whether a new merge would find nothing new.

    Committed responses never change, so results without missing responses stay current. Otherwise the completion
    markers are compared with those that the merge read; clocks of different nodes would be unreliable.
    """
    if not results.merge["missing"]:
        return True
    shards = [shard for variant in variants for group in _shards_on_disk(layout, variant).values() for shard in group]
    return _has_merged(results, _completion_markers(layout, shards))
