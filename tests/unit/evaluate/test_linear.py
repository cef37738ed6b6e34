"""File operations of a merge, of a status and of the start of an attempt grow linearly with the units of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpcq.core.attempts import Attempt, AttemptRecord, new_attempt, utc_now
from hpcq.core.outcomes import Launcher
from hpcq.core.paths import RunLayout, segment_folders
from hpcq.core.work_records import EvaluateWork, MergeWork, UnitKind
from hpcq.evaluate.merge import merge
from hpcq.evaluate.worker import evaluate
from hpcq.launch.recovery.end_attempts import EndedJob, record_cancelled
from hpcq.launch.recovery.retry_policy import RetryPolicy
from hpcq.launch.recovery.stale_attempts import close_stale_attempts
from hpcq.monitor.status import run_status
from hpcq.monitor.units import UnitRecord
from tests.operations import Operations, counted_operations

MakeWork = Callable[..., EvaluateWork]
MakeMerge = Callable[..., MergeWork]
MakeAttempt = Callable[[str], Attempt]
Measure = Callable[[int], Operations]

FEW, MANY = 3, 12
"""Variants, with two units each."""
MAX_GROWTH = 1.2
"""Growth of the operations per unit. Quadratic growth would be 4."""


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """The run of the works."""
    return RunLayout(name="run", runs=tmp_path, checkpoints=tmp_path / "checkpoints", logs=tmp_path / "logs")


@pytest.fixture
def evaluated(make_work: MakeWork, make_attempt: MakeAttempt) -> Callable[[int, int], list[EvaluateWork]]:
    """Return a function that evaluates variants completely, two shards each, and returns the works."""

    def run(first: int, end: int) -> list[EvaluateWork]:
        works = [
            make_work(shard, 2, model=f"org/M{number}", flush_interval_s=60.0)
            for number in range(first, end)
            for shard in range(2)
        ]
        for work in works:
            evaluate(work, make_attempt(Path(work.segments_path).name))
        return works

    return run


def check_linear(few: Operations, many: Operations) -> None:
    """Check that the operations per unit are the same, with a few more or less."""
    assert few.total > FEW
    assert many.total / MANY <= MAX_GROWTH * few.total / FEW, (few, many)


def test_a_merge_is_linear(
    evaluated: Callable[[int, int], list[EvaluateWork]],
    make_merge: MakeMerge,
    make_attempt: MakeAttempt,
    layout: RunLayout,
) -> None:
    """Each folder is listed a fixed number of times. Observed: all folders were listed once per variant."""
    works = evaluated(0, FEW)
    attempt = make_attempt("merge.run")
    with counted_operations(layout.folder) as few:
        merge(make_merge(*works[::2]), attempt)
    works += evaluated(FEW, MANY)
    with counted_operations(layout.folder) as many:
        merge(make_merge(*works[::2]), attempt)
    check_linear(few, many)


def test_a_status_is_linear(evaluated: Callable[[int, int], list[EvaluateWork]], layout: RunLayout) -> None:
    """Observed: all folders were listed once per variant."""
    works = evaluated(0, FEW)

    def operations() -> Operations:
        units = [
            UnitRecord(
                id=Path(work.segments_path).name,
                kind=UnitKind.EVALUATE,
                variant_id=work.variant.id,
                address=work.address,
            )
            for work in works
        ]
        with counted_operations(layout.folder) as counts:
            status = run_status(layout, units, {})
        assert status.counts == {"done": len(works)}
        return counts

    few = operations()
    works += evaluated(FEW, MANY)
    check_linear(few, operations())


def record(unit: str) -> AttemptRecord:
    """Return the record of a first attempt."""
    return AttemptRecord(unit=unit, attempt=0, job_id="1", node="n", pid=1, start=utc_now(), launcher=Launcher.SLURM)


def test_the_start_of_an_attempt_does_not_read_other_units(
    evaluated: Callable[[int, int], list[EvaluateWork]], layout: RunLayout
) -> None:
    """For runs of any size: its own records are looked up, and one listing finds its variant's folders."""
    works = evaluated(0, FEW)

    def operations() -> Operations:
        work = works[0]
        with counted_operations(layout.folder) as counts:
            close_stale_attempts(layout, "evaluate.new", RetryPolicy(), own=None)
            new_attempt(layout.attempts, record("evaluate.new"))
            folders = segment_folders(layout.segments, work.variant)
        assert len(folders) == 2
        next(layout.attempts.glob("evaluate.new.*")).unlink()
        return replace(counts, entries=0)

    few = operations()
    assert few.listed == 1
    works += evaluated(FEW, MANY)
    assert operations() == few


def test_recording_cancelled_units_is_linear(layout: RunLayout) -> None:
    """Observed: `cancel` listed all attempts once per unit, and had not ended after five minutes with 2,000 units."""

    def operations(count: int) -> Operations:
        with counted_operations(layout.folder) as counts:
            for number in range(count):
                job = EndedJob(job_id=f"1_{number}", launcher=Launcher.SLURM, node="", log="")
                record_cancelled(layout, f"evaluate.{count}.{number}", job, {})
        return counts

    check_linear(operations(FEW), operations(MANY))
