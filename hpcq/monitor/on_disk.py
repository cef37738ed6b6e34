"""What is on disk, and so done whatever a scheduler says: checkpoints, finished evaluations, merged results."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcq.core.completion import Completion, read_completion
from hpcq.core.errors import RunIncomplete, SegmentCorruptError
from hpcq.core.files import listed
from hpcq.core.paths import RunLayout
from hpcq.core.work import Kind
from hpcq.store import Results, read_results

_EVALUATION = re.compile(rf"{Kind.EVALUATE}\.(?P<variant>.+?)(?:\.\d+of(?P<count>\d+))?")


def committed_units(layout: RunLayout, units: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Ids of the units (rows of the plan's document) whose result is on disk, whole.

    Raises:
        StorageError: the file system refused to tell.
    """
    results = _results(layout)
    done: set[str] = set()
    for variant, shards in _evaluations(units).items():
        address = shards[0]["address"]
        earlier = [group for count, group in _shards(layout, variant).items() if count == len(group) != len(shards)]
        is_finished = any(_completed(layout, results, variant, group, address) == group for group in earlier)
        present = {unit["id"] for unit in shards}
        done |= present if is_finished else _completed(layout, results, variant, present, address)
    done |= {unit["id"] for unit in units if unit["kind"] == Kind.QUANTIZE and Path(unit["checkpoint"]).is_dir()}
    if results is not None and _is_current(layout, results, _evaluations(units)):
        done |= {unit["id"] for unit in units if unit["kind"] == Kind.MERGE}
    return frozenset(done)


def _evaluations(units: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The plan's evaluations by variant."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for unit in units:
        if unit["kind"] == Kind.EVALUATE:
            found.setdefault(unit["variant"], []).append(unit)
    return found


def _shards(layout: RunLayout, variant: str) -> dict[int, set[str]]:
    """The ids of the variant's shards that left a folder, under this plan or an earlier one, by their number in all."""
    found: dict[int, set[str]] = {}
    for match in filter(None, (_EVALUATION.fullmatch(folder.name) for folder in listed(layout.segments))):
        if match["variant"] == variant:
            found.setdefault(int(match["count"] or 1), set()).add(match[0])
    return found


def _completed(
    layout: RunLayout, results: Results | None, variant: str, shards: Collection[str], address: str
) -> set[str]:
    """Those of a variant's shards whose workers say that every response at `address` is committed.

    A merge that found the words of all of them, and lacks responses of the variant all the same, proves that segments
    were lost after they were committed: then none of these words is believed, until there is a new one.
    """
    is_lacking = results is not None and any(item["variant"] == variant for item in results.merge["missing_from"])
    seen = results.completions if results and is_lacking else {}
    doubted = seen if all(shard in seen for shard in shards) else {}
    words = _words(layout, shards)
    return {shard for shard, word in words.items() if word.address == address and word.digest != doubted.get(shard)}


def _words(layout: RunLayout, shards: Iterable[str]) -> dict[str, Completion]:
    return {shard: word for shard in shards if (word := read_completion(layout.unit_segments(shard)))}


def _has_seen(results: Results, words: Mapping[str, Completion]) -> bool:
    return all(results.completions.get(unit) == word.digest for unit, word in words.items())


def _results(layout: RunLayout) -> Results | None:
    try:
        return read_results(layout.results)
    except (RunIncomplete, SegmentCorruptError):
        return None


def _is_current(layout: RunLayout, results: Results, variants: Iterable[str]) -> bool:
    """Unless the results lack something and an evaluation has finished since; what it says is compared, not clocks.

    Responses never change once committed, so results that lack nothing stay right for ever.
    """
    if not results.merge["missing"]:
        return True
    shards = [shard for variant in variants for group in _shards(layout, variant).values() for shard in group]
    return _has_seen(results, _words(layout, shards))
