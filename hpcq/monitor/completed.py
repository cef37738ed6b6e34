"""Units whose result is on disk: staged files, checkpoints, evaluations, merged results. Slurm is not queried."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcq.core.completion_marker import CompletionMarker, read_completion_marker
from hpcq.core.errors import RunIncompleteError, SegmentCorruptError
from hpcq.core.file_facts import remembered
from hpcq.core.files import list_folder, storage_errors
from hpcq.core.frozen import dataclass
from hpcq.core.paths import RunLayout
from hpcq.core.unit_ids import UnitId
from hpcq.core.work_records import UnitKind
from hpcq.monitor.units import Unit

_SUMMARY_VERSION = "1"
"""Changes when `_summarize` returns something else for the same file."""


@dataclass(frozen=True, kw_only=True)
class _Merged:
    """What `results.h5` says about its inputs. It is kept until the file changes: reading takes HDF5 and a checksum.

    Attributes:
        missing_from: Variants with missing responses.
        is_complete: No response is missing.
        completions: As in `hpcq.store.Results`.
        evaluated: As in `hpcq.store.Results`.
    """

    missing_from: Sequence[str]
    is_complete: bool
    completions: Mapping[str, str]
    evaluated: Mapping[str, str | None]


def completed_units(layout: RunLayout, units: Sequence[Unit]) -> frozenset[str]:
    """Return the ids of the units whose complete result is on disk.

    Args:
        layout: Paths of the run.
        units: The units of the plan.

    Raises:
        StorageError: A file or folder cannot be read.
    """
    results, on_disk, evaluations = _read_results(layout), _shards_on_disk(layout), _evaluations_by_variant(units)
    done: set[str] = set()
    for variant, shards in evaluations.items():
        address = shards[0].address
        earlier = [group for count, group in on_disk.get(variant, {}).items() if count == len(group) != len(shards)]
        is_finished = any(_completed_shards(layout, results, variant, group, address) == group for group in earlier)
        present = {unit.id for unit in shards}
        done |= present if is_finished else _completed_shards(layout, results, variant, present, address)
    done |= {unit.id for unit in units if unit.checkpoint is not None and Path(unit.checkpoint).is_dir()}
    done |= {unit.id for unit in units if unit.kind is UnitKind.STAGE and _has_staged(layout, unit)}
    if (
        results is not None
        and _is_merge_of(results, evaluations)
        and _is_current(layout, results, evaluations, on_disk)
    ):
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


def _shards_on_disk(layout: RunLayout) -> dict[str, dict[int, set[str]]]:
    """Return the ids of the shards with a folder, from any plan of the run, by variant and number of shards."""
    found: dict[str, dict[int, set[str]]] = {}
    for folder in list_folder(layout.segments):
        unit = UnitId.parse(folder.name)
        if unit and unit.kind is UnitKind.EVALUATE:
            found.setdefault(unit.subject, {}).setdefault(unit.shard.count, set()).add(folder.name)
    return found


def _completed_shards(
    layout: RunLayout, results: _Merged | None, variant: str, shards: Collection[str], address: str | None
) -> set[str]:
    """Return those of `shards` with a valid completion marker for `address`.

    If a merge read the markers of all of these shards and responses of the variant were still missing, segments were
    lost after they had been committed. Then these markers are invalid until a new attempt replaces them.
    """
    has_missing = results is not None and variant in results.missing_from
    merged = results.completions if results and has_missing else {}
    invalid = merged if all(shard in merged for shard in shards) else {}
    markers = _completion_markers(layout, shards, address)
    return {shard for shard, marker in markers.items() if marker.digest != invalid.get(shard)}


def _completion_markers(layout: RunLayout, shards: Iterable[str], address: str | None) -> dict[str, CompletionMarker]:
    """Return the markers for `address`. Those of an earlier plan, with other tasks, are left out."""
    markers = ((shard, read_completion_marker(layout.unit_segments(shard))) for shard in shards)
    return {shard: marker for shard, marker in markers if marker is not None and marker.is_for(address)}


def _read_results(layout: RunLayout) -> _Merged | None:
    """Return the summary of the merged results; None if there are none, or if they are damaged."""
    try:
        with storage_errors(layout.results):
            return _Merged(**remembered(layout.results, _summarize, name="results", version=_SUMMARY_VERSION))
    except (FileNotFoundError, RunIncompleteError, SegmentCorruptError):
        return None


def _summarize(path: Path) -> dict[str, Any]:
    """Return the fields of `_Merged`; the whole file is verified."""
    from hpcq.store.results import read_results

    results = read_results(path, with_variants=False)
    return {
        "missing_from": sorted({item["variant"] for item in results.merge["missing_from"]}),
        "is_complete": not results.merge["missing"],
        "completions": dict(results.completions),
        "evaluated": dict(results.evaluated),
    }


def _is_merge_of(results: _Merged, evaluations: Mapping[str, Sequence[Unit]]) -> bool:
    """Return whether all evaluations of the plan were merged. Results may have more: variants of an earlier plan.

    Results of earlier versions do not name the address of each evaluation.
    """
    merged = results.evaluated
    return all(name in merged and merged[name] in (None, shards[0].address) for name, shards in evaluations.items())


def _is_current(
    layout: RunLayout,
    results: _Merged,
    evaluations: Mapping[str, Sequence[Unit]],
    on_disk: Mapping[str, Mapping[int, Collection[str]]],
) -> bool:
    """Return whether a new merge would find nothing new.

    Committed responses never change, so results without missing responses stay current. Otherwise the completion
    markers are compared with those that the merge read; clocks of different nodes would be unreliable.
    """
    if results.is_complete:
        return True
    return all(
        results.completions.get(shard) == marker.digest
        for variant, planned in evaluations.items()
        for shards in on_disk.get(variant, {}).values()
        for shard, marker in _completion_markers(layout, shards, planned[0].address).items()
    )
