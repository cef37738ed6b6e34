"""What is done is told by what files say of each other, whatever clocks say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.completion import read_completion, write_completion
from hpcq.core.errors import StorageError
from hpcq.core.paths import COMPLETE, RunLayout
from hpcq.monitor.on_disk import committed_units
from hpcq.store import RequestKey, VariantResults, load, merge_report, write_results

UNITS: list[dict[str, Any]] = [
    {"id": f"evaluate.v.{index}of2", "kind": "evaluate", "variant": "v", "address": "a", "shard": {"count": 2}}
    for index in range(2)
] + [{"id": "merge", "kind": "merge", "variant": None}]
FIRST, SECOND, MERGE = (unit["id"] for unit in UNITS)


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """An empty run."""
    return RunLayout(name="r", runs=tmp_path / "runs", checkpoints=tmp_path / "checkpoints", logs=tmp_path / "logs")


def complete(layout: RunLayout, unit: str, attempt: int = 1, *, clock_ns: int | None = None) -> None:
    """The worker's word; by a clock that is wrong, if one is given."""
    write_completion(layout.unit_segments(unit), address="a", requests=1, attempt=attempt)
    if clock_ns is not None:
        os.utime(layout.unit_segments(unit) / COMPLETE, ns=(clock_ns, clock_ns))


def merge(layout: RunLayout, *seen: str) -> None:
    """Results that lack a response of v, merged when the words of `seen` were there."""
    index = load([], expect={})
    words = {unit: word.digest for unit in seen if (word := read_completion(layout.unit_segments(unit)))}
    assert len(words) == len(seen)
    write_results(
        layout.results,
        run="r",
        provenance={},
        variants=[VariantResults(variant="v", index=index, scores=[], provenance={})],
        merge=merge_report([("v", [RequestKey("arc", "1", 0, 0, 0, "0" * 32)], index)]),
        completions=words,
    )


def done(layout: RunLayout) -> set[str]:
    """The ids of what is done."""
    return {*committed_units(layout, UNITS)}


@pytest.mark.parametrize("clock_ns", [0, 4 * 10**18])
def test_a_merge_is_done_until_an_evaluation_finishes_that_it_has_not_seen(layout: RunLayout, clock_ns: int) -> None:
    """In 1970 or in 2096 by the clock of the node that finished."""
    complete(layout, FIRST, clock_ns=clock_ns)
    merge(layout, FIRST)
    assert done(layout) == {FIRST, MERGE}
    complete(layout, SECOND, clock_ns=clock_ns)
    assert done(layout) == {FIRST, SECOND}


def test_what_a_shard_has_not_finished_is_not_held_against_the_others(layout: RunLayout) -> None:
    """A merge in the middle of a run lacks what is still being computed."""
    complete(layout, FIRST)
    merge(layout, FIRST)
    assert done(layout) == {FIRST, MERGE}


def test_segments_that_were_lost_after_all_had_finished_are_computed_again(layout: RunLayout) -> None:
    """All shards said that all was committed, and the merge lacks something: each is believed when it says so anew."""
    complete(layout, FIRST)
    complete(layout, SECOND)
    merge(layout, FIRST, SECOND)
    assert done(layout) == {MERGE}
    complete(layout, FIRST, attempt=2)
    assert done(layout) == {FIRST}
    complete(layout, SECOND, attempt=2)
    assert done(layout) == {FIRST, SECOND}


def test_a_folder_that_cannot_be_looked_at_is_a_fault_and_no_empty_one(layout: RunLayout) -> None:
    """A run whose file system does not answer must not look like one that has not begun."""
    layout.folder.mkdir(parents=True)
    layout.segments.write_text("a file where a folder should be")
    with pytest.raises(StorageError, match="is a file, not a folder"):
        committed_units(layout, UNITS)
