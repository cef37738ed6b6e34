"""Completed units are determined from the content of files, not from their times."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcq.core.completion_marker import extend_completion_marker, read_completion_marker, write_completion_marker
from hpcq.core.errors import StorageError
from hpcq.core.paths import COMPLETION_FILE, RunLayout
from hpcq.core.work_records import UnitKind
from hpcq.monitor.completed import completed_units
from hpcq.monitor.units import UnitRecord
from hpcq.store import RequestKey, VariantResults, load_index, merge_report, write_results

UNITS = [
    *(
        UnitRecord(id=f"evaluate.v.{index}of2", kind=UnitKind.EVALUATE, variant_id="v", address="a")
        for index in range(2)
    ),
    UnitRecord(id="merge", kind=UnitKind.MERGE),
]
FIRST, SECOND, MERGE = (unit.id for unit in UNITS)


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """An empty run."""
    return RunLayout(name="r", runs=tmp_path / "runs", checkpoints=tmp_path / "checkpoints", logs=tmp_path / "logs")


def complete(layout: RunLayout, unit: str, attempt: int = 1, *, clock_ns: int | None = None) -> None:
    """Write a completion marker, with the modification time `clock_ns` if given."""
    write_completion_marker(layout.unit_segments(unit), address="a", requests=1, attempt=attempt)
    if clock_ns is not None:
        os.utime(layout.unit_segments(unit) / COMPLETION_FILE, ns=(clock_ns, clock_ns))


def merge(layout: RunLayout, *completed: str) -> None:
    """Write results with one missing response of v, merged after the units in `completed` had finished."""
    index = load_index([], expect={})
    markers = {
        unit: marker.digest for unit in completed if (marker := read_completion_marker(layout.unit_segments(unit)))
    }
    assert len(markers) == len(completed)
    write_results(
        layout.results,
        run="r",
        provenance={},
        variants=[VariantResults(variant="v", index=index, scores=[], provenance={})],
        merge=merge_report([("v", [RequestKey("arc", "1", 0, 0, 0, "0" * 32)], index)]),
        completions=markers,
    )


def done(layout: RunLayout) -> set[str]:
    """Return the ids of the completed units."""
    return {*completed_units(layout, UNITS)}


@pytest.mark.parametrize("clock_ns", [0, 4 * 10**18])
def test_an_incomplete_merge_is_done_until_another_evaluation_finishes(layout: RunLayout, clock_ns: int) -> None:
    """Even if the clock of the node is at 1970 or 2096."""
    complete(layout, FIRST, clock_ns=clock_ns)
    merge(layout, FIRST)
    assert done(layout) == {FIRST, MERGE}
    complete(layout, SECOND, clock_ns=clock_ns)
    assert done(layout) == {FIRST, SECOND}


def test_an_unfinished_shard_does_not_invalidate_the_others(layout: RunLayout) -> None:
    """In a merge during the run, responses of unfinished shards are missing."""
    complete(layout, FIRST)
    merge(layout, FIRST)
    assert done(layout) == {FIRST, MERGE}


def test_segments_that_were_lost_after_completion_are_computed_again(layout: RunLayout) -> None:
    """If all shards are complete but the merge has missing responses, each shard counts again after a new attempt."""
    complete(layout, FIRST)
    complete(layout, SECOND)
    merge(layout, FIRST, SECOND)
    assert done(layout) == {MERGE}
    complete(layout, FIRST, attempt=2)
    assert done(layout) == {FIRST}
    complete(layout, SECOND, attempt=2)
    assert done(layout) == {FIRST, SECOND}


def test_results_that_change_are_read_again(layout: RunLayout) -> None:
    """A damaged file counts as no merge, although what it said before is remembered."""
    complete(layout, FIRST)
    merge(layout, FIRST)
    assert done(layout) == {FIRST, MERGE}
    content = layout.results.read_bytes()
    layout.results.write_bytes(content[:-1])
    assert done(layout) == {FIRST}
    layout.results.write_bytes(content)
    assert done(layout) == {FIRST, MERGE}


def test_without_a_cache_results_are_read_each_time(layout: RunLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Observed: with a cache folder that cannot be created, a finished merge was shown as outdated."""
    monkeypatch.setenv("HPCQ_CACHE", "/proc/none")
    complete(layout, FIRST)
    merge(layout, FIRST)
    assert done(layout) == {FIRST, MERGE}


def test_an_unreadable_folder_is_an_error(layout: RunLayout) -> None:
    """A run on a failing file system must not look like one that has not started."""
    layout.folder.mkdir(parents=True)
    layout.segments.write_text("a file where a folder should be")
    with pytest.raises(StorageError, match="is a file, not a folder"):
        completed_units(layout, UNITS)


def test_markers_of_an_earlier_plan_do_not_count(layout: RunLayout) -> None:
    """A task was added, one shard has answered it, and a merge came first: observed, that shard ran again."""
    write_completion_marker(layout.unit_segments(FIRST), address="fewer tasks", requests=1, attempt=1)
    complete(layout, SECOND, attempt=2)
    merge(layout, SECOND)
    assert done(layout) == {SECOND, MERGE}
    complete(layout, FIRST, attempt=2)
    assert done(layout) == {FIRST, SECOND}


def test_a_merge_without_all_evaluations_of_the_plan_is_not_current(layout: RunLayout) -> None:
    """A variant that was added, or whose tasks have changed, is not in the results: the merge runs again."""
    for unit in (FIRST, SECOND):
        complete(layout, unit)
    results = {
        name: VariantResults(
            variant=name, index=load_index([], expect={}), scores=[], provenance={"evaluation_address": "a"}
        )
        for name in ("v", "removed")
    }
    report = merge_report([])
    write_results(layout.results, run="r", provenance={}, variants=results.values(), merge=report)
    assert MERGE in done(layout)
    added = UnitRecord(id="evaluate.new", kind=UnitKind.EVALUATE, variant_id="new", address="b")
    changed = [UnitRecord(id=FIRST, kind=UnitKind.EVALUATE, variant_id="v", address="more tasks"), UNITS[2]]
    for units in ([added, *UNITS], changed):
        assert MERGE not in completed_units(layout, units)


def test_a_marker_can_stand_for_fewer_tasks(layout: RunLayout) -> None:
    """After a task was removed, complete responses are complete without a job, and with the task again, too."""
    complete(layout, FIRST)
    for earlier, address in (("other", "not"), ("a", "fewer"), ("fewer", "fewest")):
        extend_completion_marker(layout.unit_segments(FIRST), earlier=earlier, address=address)
    marker = read_completion_marker(layout.unit_segments(FIRST))
    assert marker is not None
    assert [marker.is_for(address) for address in ("a", "fewer", "fewest", "not")] == [True, True, True, False]
