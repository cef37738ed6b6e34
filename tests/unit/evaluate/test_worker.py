"""Evaluation worker, with the synthetic backend: commits, restarts, shards."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcq.core.attempts import Attempt
from hpcq.core.paths import COMPLETION_FILE, segment_folders
from hpcq.core.work_records import EvaluateWork, Task
from hpcq.evaluate.request_set import build_request_set
from hpcq.evaluate.worker import evaluate
from hpcq.store import Index, count_rows, load_index, segment_paths

MakeWork = Callable[..., EvaluateWork]
MakeAttempt = Callable[[str], Attempt]

IN_A_PROCESS = """
import pickle, sys
from pathlib import Path
from hpcq.core.attempts import Attempt, AttemptRecord, utc_now
from hpcq.evaluate.worker import evaluate
record = AttemptRecord(unit="evaluate.x", attempt=1, job_id="1", node="here", pid=1, start=utc_now())
evaluate(pickle.loads(bytes.fromhex(sys.argv[1])), Attempt(Path(sys.argv[2]), record))
"""


def _index(work: EvaluateWork) -> Index:
    addresses = build_request_set(work.tasks, is_synthetic=True).addresses(work)
    return load_index(segment_folders(Path(work.segments_path).parent, work.variant), expect=addresses)


def _start(work: EvaluateWork, attempts: Path) -> subprocess.Popen[bytes]:
    """Start a worker in a process."""
    return subprocess.Popen([sys.executable, "-c", IN_A_PROCESS, pickle.dumps(work).hex(), str(attempts)])


def _wait_for_rows(work: EvaluateWork, rows: int) -> None:
    deadline_s = time.monotonic() + 280
    while count_rows(Path(work.segments_path)) < rows:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_all_requests_are_answered(make_work: MakeWork, make_attempt: MakeAttempt) -> None:
    """A worker that returns has committed every request, and writes their number to `complete.json`."""
    work, attempt = make_work(), make_attempt("evaluate.x")

    evaluate(work, attempt)

    assert len(_index(work)) == 5 * 4 + 4
    complete = json.loads((Path(work.segments_path) / COMPLETION_FILE).read_text())
    assert complete == {"schema": 1, "requests": 24, "address": work.address, "attempt": 1}
    assert (attempt.record.total, attempt.record.restored, attempt.record.facts["answered"]) == (24, 0, 24)
    assert attempt.record.facts["peak_memory_bytes"] > 0


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shards_together_are_the_whole(make_work: MakeWork, make_attempt: MakeAttempt, count: int) -> None:
    """Any number of shards commits the same responses as one worker, each once."""
    alone = make_work(model="org/Alone")
    evaluate(alone, make_attempt("evaluate.alone"))
    for index in range(count):
        evaluate(make_work(index, count), make_attempt(f"evaluate.{index}"))

    together = _index(make_work())

    assert together.responses == _index(alone).responses
    assert together.duplicates == 0


def test_nothing_is_computed_twice(make_work: MakeWork, make_attempt: MakeAttempt) -> None:
    """A worker that finds some of its segments adds only the missing rows, and the responses are the same."""
    work = make_work()
    evaluate(work, make_attempt("evaluate.x"))
    before = _index(work).responses
    for path in segment_paths(Path(work.segments_path))[::2]:
        path.unlink()
    left = len(_index(work))
    attempt = make_attempt("evaluate.x")

    evaluate(work, attempt)

    after = _index(work)
    assert 0 < left < len(before)
    assert (after.responses, after.duplicates) == (before, 0)
    assert (attempt.record.restored, attempt.record.facts["answered"]) == (left, len(before) - left)


def test_other_shards_count_as_answered(make_work: MakeWork, make_attempt: MakeAttempt) -> None:
    """After a change of the number of shards, responses of the old shards are not computed again."""
    for index in range(3):
        evaluate(make_work(index, 3), make_attempt(f"evaluate.{index}"))
    attempt = make_attempt("evaluate.whole")

    evaluate(make_work(), attempt)

    assert (attempt.record.total, attempt.record.restored) == (24, 24)
    assert not segment_paths(Path(make_work().segments_path))


def test_a_partial_chunk_is_completed(make_work: MakeWork, make_attempt: MakeAttempt) -> None:
    """Of a chunk with some responses, only the missing ones are committed."""
    evaluate(make_work(batch_size=2), make_attempt("evaluate.x"))
    work = make_work(batch_size=7)
    segment_paths(Path(work.segments_path))[0].unlink()
    left = count_rows(Path(work.segments_path))
    attempt = make_attempt("evaluate.x")

    evaluate(work, attempt)

    assert 0 < left < 24
    assert attempt.record.restored == left
    assert attempt.record.facts["answered"] == 24 - left
    assert (len(_index(work)), _index(work).duplicates) == (24, 0)


def test_responses_of_another_evaluation_are_ignored(make_work: MakeWork, make_attempt: MakeAttempt) -> None:
    """Responses to the same task with another number of documents are ignored; those to an unchanged task are used."""
    evaluate(make_work(), make_attempt("evaluate.x"))
    work = make_work(tasks=(Task(name="arc_challenge", limit=6), Task(name="gsm8k", limit=4)))
    attempt = make_attempt("evaluate.x")

    evaluate(work, attempt)

    assert (attempt.record.total, attempt.record.restored) == (28, 4)


def test_sigkill_costs_only_the_last_batch(make_work: MakeWork, make_attempt: MakeAttempt, tmp_path: Path) -> None:
    """After SIGKILL the next attempt uses the committed responses and completes the rest."""
    work = make_work(synthetic_options=(("request_seconds", 0.5),))
    process = _start(work, tmp_path / "attempts")
    _wait_for_rows(work, 6)
    process.kill()
    process.wait()
    committed = count_rows(Path(work.segments_path))
    attempt = make_attempt("evaluate.x")

    evaluate(make_work(), attempt)

    assert attempt.record.restored == committed < 24
    assert (len(_index(work)), _index(work).duplicates) == (24, 0)


def test_a_termination_notice_commits_pending_batches(make_work: MakeWork, make_attempt: MakeAttempt) -> None:
    """On a termination notice the pending batches are committed, and the worker continues."""
    work = make_work(synthetic_options=(("request_seconds", 0.25),), flush_interval_s=3600.0)
    attempt = make_attempt("evaluate.x")
    worker = threading.Thread(target=evaluate, args=(work, attempt))
    worker.start()
    while count_rows(Path(work.segments_path)) == 0:
        assert worker.is_alive()
        attempt.notify_termination()
        time.sleep(0.01)
    worker.join()

    assert count_rows(Path(work.segments_path)) == 24
    assert len(segment_paths(Path(work.segments_path))) >= 2
    assert (Path(work.segments_path) / COMPLETION_FILE).exists()
