"""The evaluation worker: answers one shard of a variant's requests and commits every batch to the store.

Knows requests, batches, the door to back ends and the store. Must not know how it was launched, nor score anything.
May be killed at any instant and run again: what a segment holds is not computed twice.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from pathlib import Path

from hpcq.attempts import Attempt
from hpcq.completion import write_completion
from hpcq.evaluate.batches import Batch, cut, share
from hpcq.evaluate.door import Backend, make_backend
from hpcq.evaluate.folders import unit_folders
from hpcq.evaluate.provenance import provenance_of, verify_versions
from hpcq.evaluate.questions import questions_of
from hpcq.evaluate.requests import Request
from hpcq.evaluate.shares import answered_at_first
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
    known = _known(work, addresses)
    answered = answered_at_first(work, (request.key for request in questions.requests), known)
    mine = share(cut(questions.requests, work.batch_size), work.shard, answered)
    total = sum(map(len, mine))
    missing = [batch for batch in mine if any(request.key not in known for request in batch)]
    restored = sum(request.key in known for batch in mine for request in batch)
    attempt.update(phase="loading", total=total, restored=restored)
    if missing:
        _answer(work, attempt, missing, known, addresses)
    write_completion(Path(work.segments_path), address=work.address, requests=total, attempt=attempt.record.attempt)
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
    attempt.on_notice(writer.flush)
    with writer:
        for batch in batches:
            for piece in _pieces(batch, attempt.batch_share):
                if any(request.key not in known for request in piece):
                    _answer_batch(backend, piece, known, writer)
    seconds = time.monotonic() - loaded_s
    answered = sum(map(len, batches))
    attempt.update(
        facts={"answered": answered, "answer_seconds": round(seconds, 3), "requests_per_second": answered / seconds}
    )


def _pieces(batch: Batch, share: float) -> list[Sequence[Request]]:
    """The batch whole, or in pieces where an attempt has run out of memory: with other neighbours, then."""
    size = max(1, int(len(batch) * share))
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def _answer_batch(backend: Backend, batch: Sequence[Request], known: set[RequestKey], writer: SegmentWriter) -> None:
    """Compute a batch whole, so that each response has its usual neighbours, and add what was not known."""
    rows = zip(batch, backend.answer(batch), strict=True)
    writer.add_all((request.key, response) for request, response in rows if request.key not in known)


def _peak_memory_bytes() -> int:
    """Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
