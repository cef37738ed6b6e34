"""The evaluation worker: answers one shard of a variant's requests and commits every batch to the store.

Knows requests, batches, the door to back ends and the store. Must not know how it was launched, nor score anything.
May be killed at any instant and run again: what a segment holds is not computed twice.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from hpcq.attempts import Attempt
from hpcq.evaluate.batches import Batch, cut, deal
from hpcq.evaluate.door import Backend, make_backend
from hpcq.evaluate.folders import unit_folders
from hpcq.evaluate.provenance import provenance_of, verify_versions
from hpcq.evaluate.questions import questions_of
from hpcq.evaluate.requests import Request
from hpcq.files import write_text
from hpcq.layout import COMPLETE
from hpcq.store import RequestKey, SegmentWriter, load
from hpcq.units import EvaluateWork


def evaluate(work: EvaluateWork, attempt: Attempt) -> None:
    """Answer every request of the shard that no segment of the run answers, commit the responses, and say so.

    Raises:
        HpcqError: the tools, the tasks, the checkpoint or the file system do not allow it; the sentence says which.
    """
    if not work.is_rehearsal:
        verify_versions(work.versions)
    attempt.update(phase="building requests")
    questions = questions_of(work.tasks, is_rehearsal=work.is_rehearsal)
    addresses = questions.addresses(work)
    mine = deal(cut(questions.requests, work.batch_size), work.shard)
    total = sum(map(len, mine))
    known = _known(work, addresses)
    missing = [batch for batch in mine if any(request.key not in known for request in batch)]
    restored = sum(request.key in known for batch in mine for request in batch)
    attempt.update(phase="loading", total=total, restored=restored)
    if missing:
        _answer(work, attempt, missing, known, addresses)
    done = {"schema": 1, "requests": total, "address": work.address}
    write_text(Path(work.segments_path) / COMPLETE, json.dumps(done) + "\n")
    attempt.update(phase=None, facts={"peak_memory_bytes": _peak_memory_bytes()})


def _known(work: EvaluateWork, addresses: dict[str, str]) -> set[RequestKey]:
    """What the run's segments answer already, whichever shard computed it.

    A request on which segments disagree counts as answered: a third answer would settle nothing.
    """
    index = load(unit_folders(Path(work.segments_path).parent, work.variant), expect=addresses)
    return {*index.responses, *(conflict.key for conflict in index.conflicts)}


def _answer(
    work: EvaluateWork,
    attempt: Attempt,
    batches: Sequence[Batch],
    known: set[RequestKey],
    addresses: dict[str, str],
) -> None:
    backend = make_backend(work)
    began_s = time.monotonic()
    backend.load()
    loaded_s = time.monotonic()
    described = backend.describe()
    attempt.update(phase="answering", facts={"load_seconds": round(loaded_s - began_s, 3), **described})
    writer = SegmentWriter(
        Path(work.segments_path),
        attempt=attempt.record.attempt,
        addresses=addresses,
        provenance=provenance_of(work, attempt, described),
        flush_interval_s=work.flush_interval_s,
    )
    with writer, _flushing_on_sigterm(writer):
        for batch in batches:
            _answer_batch(backend, batch, known, writer)
    seconds = time.monotonic() - loaded_s
    answered = sum(map(len, batches))
    attempt.update(
        facts={"answered": answered, "answer_seconds": round(seconds, 3), "requests_per_second": answered / seconds}
    )


def _answer_batch(backend: Backend, batch: Sequence[Request], known: set[RequestKey], writer: SegmentWriter) -> None:
    """Compute a batch whole, so that each response has its usual neighbours, and add what was not known."""
    rows = zip(batch, backend.answer(batch), strict=True)
    writer.add_all((request.key, response) for request, response in rows if request.key not in known)


@contextlib.contextmanager
def _flushing_on_sigterm(writer: SegmentWriter) -> Iterator[None]:
    """Commit what waits when SIGTERM comes, then do what was to be done on it before: a courtesy, not the safety net.

    Whether to leave is the job's decision. Without one, leave.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def flush(number: int, frame: FrameType | None) -> None:
        writer.flush()
        if callable(before):
            before(number, frame)
        elif before is signal.SIG_DFL:
            raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, flush)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _peak_memory_bytes() -> int:
    """Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
