"""A kill, or a refusal of the file system, at each system call by which hpcq writes: nothing committed is lost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from hpcq.core.attempts import Attempt, AttemptRecord, read_attempts
from hpcq.core.errors import SetupError, StorageError
from hpcq.core.files import committed_folder, remove_stale_temporaries
from hpcq.core.paths import RunLayout
from hpcq.core.run_lock import run_lock, is_locked
from hpcq.store import (
    RequestKey,
    Response,
    SegmentWriter,
    VariantResults,
    digest_of_arguments,
    load_index,
    merge_report,
    read_responses,
    read_results,
    segment_paths,
    write_results,
)
from tests.faults.traced import CHANGING, LOOKING, Ending, Injection, Say, need_strace, run_all

ADDRESSES = {"arc": "a" * 64}
ROWS, BATCH = 9, 3
REFUSALS = ("ENOSPC", "EDQUOT", "EIO", "ESTALE", "EROFS", "EACCES")


def key(doc_id: int) -> RequestKey:
    """The key of a document's only request."""
    return RequestKey("arc", "1.0", doc_id, 0, 0, digest_of_arguments("loglikelihood", [doc_id]))


RESPONSES = {key(doc_id): Response(-doc_id / 7, is_greedy=doc_id % 2 == 0) for doc_id in range(ROWS)}


def answer(folder: Path, say: Say, patience_s: float = 60.0) -> None:
    """What a worker does: answer what no segment answers, in batches; each batch is acknowledged once it is flushed."""
    known = load_index([folder / "u"], expect=ADDRESSES).responses
    missing = [row for row in RESPONSES.items() if row[0] not in known]
    with SegmentWriter(
        folder / "u", attempt=1, addresses=ADDRESSES, provenance={}, flush_interval_s=1e9, retry_timeout_s=patience_s
    ) as writer:
        for start in range(0, len(missing), BATCH):
            writer.add_all(missing[start : start + BATCH])
            try:
                writer.flush()
            except StorageError:
                continue  # the rows are kept, and go with the next batch or at the end
            say(str(start + BATCH))
    say(str(ROWS))


def judge_segments(folder: Path, said: Sequence[str]) -> None:
    """Every acknowledged row is there, and nothing is torn or disputed."""
    index = load_index([folder / "u"], expect=ADDRESSES)
    assert (index.set_aside, index.conflicts) == ((), ())
    acknowledged = [*RESPONSES][: int(said[-1]) if said else 0]
    assert {name: RESPONSES[name] for name in acknowledged}.items() <= index.responses.items() <= RESPONSES.items()


def merge(folder: Path, say: Say) -> None:
    """What a merge does, where results of fewer responses stand already."""
    index = load_index([folder / "u"], expect=ADDRESSES)
    part = VariantResults(variant="v", index=index, scores=[], provenance={})
    report = merge_report([("v", [*RESPONSES], index)])
    write_results(folder / "results.h5", run="r", provenance={}, variants=[part], merge=report)
    say(str(len(index)))


def commit(folder: Path, *starts: int) -> None:
    """Commit the batches that begin there, a segment each."""
    writer = SegmentWriter(folder / "u", attempt=1, addresses=ADDRESSES, provenance={})
    for start in starts:
        writer.add_all([*RESPONSES.items()][start : start + BATCH])
        writer.flush()


def before_merge(folder: Path) -> None:
    """Merge one batch, then commit the others."""
    commit(folder, 0)
    merge(folder, lambda _: None)
    commit(folder, *range(BATCH, ROWS, BATCH))


def judge_results(folder: Path, said: Sequence[str]) -> None:
    """The earlier results or the new ones, whole; the new ones when they were acknowledged."""
    found = read_responses(folder / "results.h5", "v")
    assert read_results(folder / "results.h5").merge["found"] == len(found)
    assert len(found) in ({ROWS} if said else {BATCH, ROWS})


def attempt(folder: Path, say: Say) -> None:
    """What a job does: begin an attempt and tell three times how it goes."""
    record = AttemptRecord(unit="u", attempt=1, job_id="1", node="n", pid=1, start="2026-01-01T00:00:00+00:00")
    live = Attempt(folder, record)
    for total in range(1, 4):
        live.update(total=total)
        say(str(total))


def judge_attempts(folder: Path, said: Sequence[str]) -> None:
    """The record is what was acknowledged, or one step ahead."""
    last = int(said[-1]) if said else 0
    totals = [record.total for record in read_attempts(folder).get("u", [])]
    assert totals in ([[last], [last + 1]] if last else [[], [None], [1]])


def make_checkpoint(folder: Path, say: Say) -> None:
    """What a quantizer does: fill a folder of two files and commit it as one."""
    with committed_folder(folder / "fp8-0123") as made:
        (made / "config.json").write_text("{}", encoding="utf-8")
        (made / "parts").mkdir()
        (made / "parts" / "model.safetensors").write_bytes(b"w" * 5000)
    say("made")


def judge_checkpoint(folder: Path, said: Sequence[str]) -> None:
    """The whole checkpoint or none."""
    path = folder / "fp8-0123"
    assert path.is_dir() or not said
    if path.is_dir():
        assert (path / "config.json").read_text(encoding="utf-8") == "{}"
        assert (path / "parts" / "model.safetensors").stat().st_size == 5000


def look(folder: Path, say: Say) -> None:
    """What a merge and `status` read: segments, of which one is torn, results and attempts."""
    index = load_index([folder / "u"], expect=ADDRESSES)
    found = read_results(folder / "results.h5").merge["found"]
    say(f"{len(index)} {len(index.set_aside)} {found} {len(read_attempts(folder)['u'])}")


def before_look(folder: Path) -> None:
    """Three segments, the second cut short."""
    before_merge(folder)
    attempt(folder, lambda _: None)
    torn = segment_paths(folder / "u")[1]
    torn.write_bytes(torn.read_bytes()[:-1])


def judge_look(_: Path, said: Sequence[str]) -> None:
    """What is told is the truth: what cannot be read is neither damaged nor missing."""
    assert [*said] in ([], [f"{ROWS - BATCH} 1 {BATCH} 1"])


def nothing(_: Path) -> None:
    """No preparation."""


@dataclass(frozen=True)
class Scenario:
    """Something that is written or read: how, what must hold at any time afterwards, and what stands there before."""

    work: Callable[[Path, Say], None]
    judge: Callable[[Path, Sequence[str]], None]
    prepare: Callable[[Path], None] = nothing

    def __str__(self) -> str:
        return self.work.__name__


WRITING = [
    Scenario(answer, judge_segments),
    Scenario(merge, judge_results, before_merge),
    Scenario(attempt, judge_attempts),
    Scenario(make_checkpoint, judge_checkpoint),
]
READING = [Scenario(look, judge_look, before_look)]


class Bench:
    """Folders for the runs of one scenario, and the system calls that an undisturbed run makes."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        need_strace()
        self._scenario = scenario
        self._folder = folder
        self._numbers = itertools.count()
        scenario.prepare(warm := self._new_folder())
        scenario.work(warm, lambda _: None)  # whatever is imported late is imported now
        [(_, self.undisturbed, _)] = self.run([None])
        assert self.undisturbed.is_done, self.undisturbed

    def _new_folder(self) -> Path:
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        return folder

    def calls(self, kinds: Iterable[str]) -> list[tuple[str, int]]:
        """Kind and number of each call that the undisturbed run makes."""
        counts = self.undisturbed.calls
        return [(kind, number) for kind in kinds for number in range(1, counts[kind] + 1)]

    def run(
        self, injections: Sequence[Injection | None], **settings: float
    ) -> Iterator[tuple[Path, Ending, Injection | None]]:
        """Do the work once an injection, each in a folder of its own."""
        folders = [self._new_folder() for _ in injections]
        for folder in folders:
            self._scenario.prepare(folder)
        works = [partial(self._scenario.work, folder, **settings) for folder in folders]
        endings = run_all(zip(works, injections, strict=True), self._folder)
        yield from zip(folders, endings, injections, strict=True)

    def finish(self, folder: Path) -> None:
        """Do the work again, undisturbed: it ends as if nothing had been, and nothing of a killed process stays."""
        said: list[str] = []
        self._scenario.work(folder, said.append)
        self._scenario.judge(folder, said)
        assert said[-1] == self.undisturbed.said[-1]
        for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            remove_stale_temporaries(place)
        assert [path.name for path in folder.rglob("*.part")] == []


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    """Ready to run a scenario."""
    return Bench(request.param, tmp_path)


def scenarios(*chosen: Scenario) -> pytest.MarkDecorator:
    """Once with each scenario, and the bench for it."""
    return pytest.mark.parametrize(
        ("scenario", "bench"), [(one, one) for one in chosen], indirect=["bench"], ids=[str(one) for one in chosen]
    )


@scenarios(*WRITING)
def test_a_kill_at_any_system_call_loses_nothing_acknowledged(bench: Bench, scenario: Scenario) -> None:
    """After SIGKILL at each call what was acknowledged is there, whole; the work done again ends as undisturbed."""
    kills = [Injection(call=call, when=str(number), what="signal=KILL") for call, number in bench.calls(CHANGING)]
    assert len(kills) > 20
    for folder, ending, injection in bench.run(kills):
        assert ending.is_killed, (str(injection), ending)
        scenario.judge(folder, ending.said)
        bench.finish(folder)


@scenarios(*WRITING, *READING)
def test_a_refusal_at_any_system_call_is_a_sentence_or_heals(bench: Bench, scenario: Scenario) -> None:
    """Whatever call is refused, with whatever error: a StorageError, or no harm at all; nothing is damaged."""
    calls = [*bench.calls(CHANGING), *bench.calls(LOOKING)]
    # Every call meets one error, and every kind of call that is made six times meets all of them.
    refusals = [
        Injection(call=call, when=str(number), what=f"error={error}")
        for (call, number), error in zip(calls, itertools.cycle(REFUSALS), strict=False)
    ]
    for folder, ending, injection in bench.run(refusals):
        assert ending.is_done or ending.fault, (str(injection), ending.raised)
        scenario.judge(folder, ending.said)
        bench.finish(folder)


@pytest.mark.parametrize("bench", [Scenario(answer, judge_segments, lambda folder: commit(folder, 0))], indirect=True)
def test_an_outage_that_lasts_ends_in_one_sentence_after_the_patience(bench: Bench) -> None:
    """Nothing can be written any more, by any thread: a sentence; what was there stays, and the cure lets it go on."""
    outages = [
        Injection(call=call, when="1+", what=f"error={error}") for call in ("write", "rename") for error in REFUSALS
    ]
    for folder, ending, injection in bench.run(outages, patience_s=0.5):
        assert ending.fault, (str(injection), ending)
        assert "\\n" not in ending.fault
        assert ".part" not in ending.fault
        assert not ending.said
        judge_segments(folder, (str(BATCH),))
        bench.finish(folder)


def hold_a_run(folder: Path, say: Say) -> None:
    """Hold a run, look whether it is held, and try to hold it again."""
    layout = RunLayout(name="r", runs=folder, checkpoints=folder, logs=folder)
    with run_lock(layout):
        say(f"held {is_locked(layout)}")
        try:
            with run_lock(layout):
                say("held twice")
        except SetupError as refusal:
            say(str(refusal))
    say(f"held {is_locked(layout)}")


@pytest.mark.parametrize("error", [None, "ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def test_a_run_is_held_by_one_command_where_there_are_no_locks_too(error: str | None, tmp_path: Path) -> None:
    """On one host: the name in the file tells whether its holder lives."""
    need_strace()
    injection = Injection(call="flock", when="1+", what=f"error={error}") if error else None
    [ending] = run_all([(partial(hold_a_run, tmp_path), injection)], tmp_path)
    assert ending.calls["flock"] > 2
    held, refusal, free = ending.said
    assert (held, free) == ("held True", "held False")
    assert "another hpcq command is working on this run" in refusal


@scenarios(*WRITING, *READING)
def test_no_lock_and_no_exclusive_creation_is_asked_of_the_file_system(bench: Bench, scenario: Scenario) -> None:
    """Rename is atomic everywhere; locks and O_EXCL are not. HDF5, too, leaves files unlocked."""
    assert bench.undisturbed.said
    assert "openat(" in bench.undisturbed.trace
    assert [word for word in ("flock(", "SETLK", "O_EXCL") if word in bench.undisturbed.trace] == [], str(scenario)
