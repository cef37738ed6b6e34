"""SIGKILL or a file system error at each system call that writes or reads: no committed data is lost."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from hpcq.core import attempt_blocks
from hpcq.core.attempts import Attempt, AttemptRecord, read_attempts
from hpcq.core.errors import SetupError, StorageError
from hpcq.core.files import committed_folder, remove_stale_temporaries
from hpcq.core.paths import RunLayout
from hpcq.core.run_lock import is_locked, run_lock
from hpcq.store import (
    RequestKey,
    Response,
    SegmentWriter,
    VariantResults,
    compact,
    count_rows,
    digest_of_arguments,
    load_index,
    merge_report,
    read_responses,
    read_results,
    segment_paths,
    write_results,
)
from tests.faults.strace import (
    READ_CALLS,
    WRITE_CALLS,
    Acknowledge,
    Injection,
    TracedResult,
    require_strace,
    run_traced,
)

ADDRESSES = {"arc": "a" * 64}
ROWS, BATCH = 9, 3
ERRORS = ("ENOSPC", "EDQUOT", "EIO", "ESTALE", "EROFS", "EACCES")


def key(doc_id: int) -> RequestKey:
    """Return the key of a document's only request."""
    return RequestKey("arc", "1.0", doc_id, 0, 0, digest_of_arguments("loglikelihood", [doc_id]))


RESPONSES = {key(doc_id): Response(-doc_id / 7, is_greedy=doc_id % 2 == 0) for doc_id in range(ROWS)}


def answer(folder: Path, acknowledge: Acknowledge, retry_timeout_s: float = 60.0) -> None:
    """Answer the requests that no segment answers, in batches, as a worker does. Acknowledge each flushed batch."""
    known = load_index([folder / "u"], expect=ADDRESSES).responses
    missing = [row for row in RESPONSES.items() if row[0] not in known]
    with SegmentWriter(
        folder / "u",
        attempt=1,
        addresses=ADDRESSES,
        provenance={},
        flush_interval_s=1e9,
        retry_timeout_s=retry_timeout_s,
    ) as writer:
        for start in range(0, len(missing), BATCH):
            writer.add_all(missing[start : start + BATCH])
            try:
                writer.flush()
            except StorageError:
                continue  # the writer keeps the rows and commits them with the next batch or at the end
            acknowledge(str(start + BATCH))
    acknowledge(str(ROWS))


def check_segments(folder: Path, acknowledged: Sequence[str]) -> None:
    """All acknowledged rows exist, and no segment is truncated or in conflict."""
    index = load_index([folder / "u"], expect=ADDRESSES)
    assert (index.set_aside, index.conflicts) == ((), ())
    keys = [*RESPONSES][: int(acknowledged[-1]) if acknowledged else 0]
    assert {name: RESPONSES[name] for name in keys}.items() <= index.responses.items() <= RESPONSES.items()


def merge(folder: Path, acknowledge: Acknowledge) -> None:
    """Merge all segments. A results file with fewer responses already exists."""
    index = load_index([folder / "u"], expect=ADDRESSES)
    part = VariantResults(variant="v", index=index, scores=[], provenance={})
    report = merge_report([("v", [*RESPONSES], index)])
    write_results(folder / "results.h5", run="r", provenance={}, variants=[part], merge=report)
    acknowledge(str(len(index)))


def commit(folder: Path, *starts: int) -> None:
    """Commit the batches that start at these rows, one segment per batch."""
    writer = SegmentWriter(folder / "u", attempt=1, addresses=ADDRESSES, provenance={})
    for start in starts:
        writer.add_all([*RESPONSES.items()][start : start + BATCH])
        writer.flush()


def prepare_merge(folder: Path) -> None:
    """Merge one batch, then commit the others."""
    commit(folder, 0)
    merge(folder, lambda _: None)
    commit(folder, *range(BATCH, ROWS, BATCH))


def check_results(folder: Path, acknowledged: Sequence[str]) -> None:
    """The results file is complete: the earlier one or the new one, and the new one if it was acknowledged."""
    found = read_responses(folder / "results.h5", "v")
    assert read_results(folder / "results.h5").merge["found"] == len(found)
    assert len(found) in ({ROWS} if acknowledged else {BATCH, ROWS})


def compact_unit(folder: Path, acknowledge: Acknowledge) -> None:
    """Compact three segments to one file."""
    compact(folder / "u", is_complete=True)
    acknowledge(str(len(segment_paths(folder / "u"))))


def prepare_compaction(folder: Path) -> None:
    """Write three segments."""
    commit(folder, *range(0, ROWS, BATCH))


def check_compaction(folder: Path, acknowledged: Sequence[str]) -> None:
    """All rows exist, each once, in as many files as there were, or in one."""
    index = load_index([folder / "u"], expect=ADDRESSES)
    assert (index.set_aside, index.conflicts, index.duplicates) == ((), (), 0)
    assert index.responses == RESPONSES
    assert count_rows(folder / "u") == ROWS
    assert [*acknowledged] in ([], ["1"])


def attempt(folder: Path, acknowledge: Acknowledge) -> None:
    """Start an attempt and update its record three times, as a job does."""
    record = AttemptRecord(unit="u", attempt=1, job_id="1", node="n", pid=1, start="2026-01-01T00:00:00+00:00")
    live = Attempt(folder, record)
    for total in range(1, 4):
        live.update(total=total)
        acknowledge(str(total))


def check_attempts(folder: Path, acknowledged: Sequence[str]) -> None:
    """The record is the acknowledged one or the next one."""
    last = int(acknowledged[-1]) if acknowledged else 0
    totals = [record.total for record in read_attempts(folder).get("u", [])]
    assert totals in ([[last], [last + 1]] if last else [[], [None], [1]])


def write_block(folder: Path, acknowledge: Acknowledge) -> None:
    """Move the first two of four attempts to a block."""
    with mock.patch.object(attempt_blocks, "BLOCK", 2):
        attempt_blocks.write_blocks(folder, "u", range(1, 5), 4)
    acknowledge("moved")


def prepare_block(folder: Path) -> None:
    """Record four attempts."""
    for number in range(1, 5):
        record = AttemptRecord(unit="u", attempt=number, job_id="1", node="n", pid=1, start="2026-01-01T00:00:00+00:00")
        Attempt(folder, record)


def check_block(folder: Path, acknowledged: Sequence[str]) -> None:
    """All attempts can be read."""
    assert [record.attempt for record in read_attempts(folder)["u"]] == [1, 2, 3, 4]
    assert [*acknowledged] in ([], ["moved"])
    assert (folder / "u.1-2.attempts").exists() or not acknowledged


def write_checkpoint(folder: Path, acknowledge: Acknowledge) -> None:
    """Write two files to a folder and commit it as one, as a quantizer does."""
    with committed_folder(folder / "fp8-0123") as temporary:
        (temporary / "config.json").write_text("{}", encoding="utf-8")
        (temporary / "parts").mkdir()
        (temporary / "parts" / "model.safetensors").write_bytes(b"w" * 5000)
    acknowledge("committed")


def check_checkpoint(folder: Path, acknowledged: Sequence[str]) -> None:
    """The checkpoint is complete or does not exist."""
    path = folder / "fp8-0123"
    assert path.is_dir() or not acknowledged
    if path.is_dir():
        assert (path / "config.json").read_text(encoding="utf-8") == "{}"
        assert (path / "parts" / "model.safetensors").stat().st_size == 5000


def read_run(folder: Path, acknowledge: Acknowledge) -> None:
    """Read segments, results and attempts, as a merge and `status` do. One segment is truncated."""
    index = load_index([folder / "u"], expect=ADDRESSES)
    found = read_results(folder / "results.h5").merge["found"]
    acknowledge(f"{len(index)} {len(index.set_aside)} {found} {len(read_attempts(folder)['u'])}")


def prepare_read(folder: Path) -> None:
    """Write three segments, and truncate the second."""
    prepare_merge(folder)
    attempt(folder, lambda _: None)
    truncated = segment_paths(folder / "u")[1]
    truncated.write_bytes(truncated.read_bytes()[:-1])


def check_read(_: Path, acknowledged: Sequence[str]) -> None:
    """If anything is reported, it is correct: files that cannot be read are not reported as damaged or missing."""
    assert [*acknowledged] in ([], [f"{ROWS - BATCH} 1 {BATCH} 1"])


def prepare_nothing(_: Path) -> None:
    """No preparation."""


@dataclass(frozen=True)
class Scenario:
    """Something that is written or read.

    Attributes:
        work: Writes or reads it.
        check: Checks what must hold at any time afterwards.
        prepare: Creates the files that exist before.
    """

    work: Callable[[Path, Acknowledge], None]
    check: Callable[[Path, Sequence[str]], None]
    prepare: Callable[[Path], None] = prepare_nothing

    def __str__(self) -> str:
        return self.work.__name__


WRITING = [
    Scenario(answer, check_segments),
    Scenario(merge, check_results, prepare_merge),
    Scenario(attempt, check_attempts),
    Scenario(write_checkpoint, check_checkpoint),
    Scenario(compact_unit, check_compaction, prepare_compaction),
    Scenario(write_block, check_block, prepare_block),
]
READING = [Scenario(read_run, check_read, prepare_read)]


class ScenarioRunner:
    """Runs a scenario, each time in a new folder.

    Attributes:
        reference: Result of a run without injection, with its system calls.
    """

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        require_strace()
        self._scenario = scenario
        self._folder = folder
        self._numbers = itertools.count()
        scenario.prepare(first := self._new_folder())
        scenario.work(first, lambda _: None)  # so that lazy imports are done before processes are forked
        [(_, self.reference, _)] = self.run([None])
        assert self.reference.is_done, self.reference

    def _new_folder(self) -> Path:
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        return folder

    def calls(self, names: Iterable[str]) -> list[tuple[str, int]]:
        """Return name and number of each system call of the reference run."""
        counts = self.reference.calls
        return [(name, number) for name in names for number in range(1, counts[name] + 1)]

    def run(
        self, injections: Sequence[Injection | None], **options: float
    ) -> Iterator[tuple[Path, TracedResult, Injection | None]]:
        """Run once per injection, each in a new folder."""
        folders = [self._new_folder() for _ in injections]
        for folder in folders:
            self._scenario.prepare(folder)
        works = [partial(self._scenario.work, folder, **options) for folder in folders]
        results = run_traced(zip(works, injections, strict=True), self._folder)
        yield from zip(folders, results, injections, strict=True)

    def check_rerun(self, folder: Path) -> None:
        """Run again without injection: the result is the reference, and no temporary file remains."""
        acknowledged: list[str] = []
        self._scenario.work(folder, acknowledged.append)
        self._scenario.check(folder, acknowledged)
        assert acknowledged[-1] == self.reference.acknowledged[-1]
        for subfolder in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            remove_stale_temporaries(subfolder)
        assert [path.name for path in folder.rglob("*.part")] == []


@pytest.fixture
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> ScenarioRunner:
    """The runner of a scenario."""
    return ScenarioRunner(request.param, tmp_path)


def with_scenarios(*scenarios: Scenario) -> pytest.MarkDecorator:
    """Return the mark that runs a test with each scenario and its runner."""
    return pytest.mark.parametrize(
        ("scenario", "runner"),
        [(scenario, scenario) for scenario in scenarios],
        indirect=["runner"],
        ids=[str(scenario) for scenario in scenarios],
    )


@with_scenarios(*WRITING)
def test_a_kill_at_any_system_call_loses_nothing_acknowledged(runner: ScenarioRunner, scenario: Scenario) -> None:
    """After SIGKILL at each call all acknowledged data is intact, and a second run gives the reference."""
    kills = [Injection(call=call, when=str(number), effect="signal=KILL") for call, number in runner.calls(WRITE_CALLS)]
    assert len(kills) > 20
    for folder, result, injection in runner.run(kills):
        assert result.is_killed, (str(injection), result)
        scenario.check(folder, result.acknowledged)
        runner.check_rerun(folder)


@with_scenarios(*WRITING, *READING)
def test_an_error_at_any_system_call_is_a_storage_error_or_harmless(runner: ScenarioRunner, scenario: Scenario) -> None:
    """An error at any call raises StorageError or has no effect, and damages no data."""
    calls = [*runner.calls(WRITE_CALLS), *runner.calls(READ_CALLS)]
    # Each call gets one error. A system call that is made at least six times gets all of them.
    injections = [
        Injection(call=call, when=str(number), effect=f"error={error}")
        for (call, number), error in zip(calls, itertools.cycle(ERRORS), strict=False)
    ]
    for folder, result, injection in runner.run(injections):
        assert result.is_done or result.storage_error, (str(injection), result.other_error)
        scenario.check(folder, result.acknowledged)
        runner.check_rerun(folder)


@pytest.mark.parametrize("runner", [Scenario(answer, check_segments, lambda folder: commit(folder, 0))], indirect=True)
def test_a_lasting_outage_is_an_error_after_the_timeout(runner: ScenarioRunner) -> None:
    """If all writes fail, the error is one line, committed data is kept, and a later run continues."""
    outages = [
        Injection(call=call, when="1+", effect=f"error={error}") for call in ("write", "rename") for error in ERRORS
    ]
    for folder, result, injection in runner.run(outages, retry_timeout_s=0.5):
        assert result.storage_error, (str(injection), result)
        assert "\\n" not in result.storage_error
        assert ".part" not in result.storage_error
        assert not result.acknowledged
        check_segments(folder, (str(BATCH),))
        runner.check_rerun(folder)


def lock_run(folder: Path, acknowledge: Acknowledge) -> None:
    """Lock a run, check whether it is locked, and try to lock it again."""
    layout = RunLayout(name="r", runs=folder, checkpoints=folder, logs=folder)
    handler = logging.Handler()
    handler.emit = lambda record: acknowledge(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("hpcq.core.run_lock").addHandler(handler)
    with run_lock(layout):
        acknowledge(f"locked {is_locked(layout)}")
        try:
            with run_lock(layout):
                acknowledge("locked twice")
        except SetupError as error:
            acknowledge(str(error))
    acknowledge(f"locked {is_locked(layout)}")


@pytest.mark.parametrize("error", [None, "ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def test_a_run_is_locked_by_one_command_also_without_flock(error: str | None, tmp_path: Path) -> None:
    """Without flock(2), the process in the lock file shows on one host whether it is held; a warning says so once."""
    require_strace()
    injection = Injection(call="flock", when="1+", effect=f"error={error}") if error else None
    [result] = run_traced([(partial(lock_run, tmp_path), injection)], tmp_path)
    assert result.calls["flock"] > 2
    *warnings, inside, message, outside = result.acknowledged
    assert [warning.partition(" (")[0] for warning in warnings] == (
        [f"{tmp_path / 'r'}: the file system has no locks"] if error else []
    )
    assert (inside, outside) == ("locked True", "locked False")
    assert "another hpcq command is working on this run" in message


@with_scenarios(*WRITING, *READING)
def test_no_locks_and_no_exclusive_creation_are_used(runner: ScenarioRunner, scenario: Scenario) -> None:
    """Only rename is atomic on all file systems; locks and O_EXCL are not. HDF5 does not lock files either."""
    assert runner.reference.acknowledged
    assert "openat(" in runner.reference.trace
    assert [call for call in ("flock(", "SETLK", "O_EXCL") if call in runner.reference.trace] == [], str(scenario)
