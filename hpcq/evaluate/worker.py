"""The evaluation worker: answers one shard of a variant's requests and commits the responses to the store.

Knows requests, pieces, the door to back ends and the store. Must not know how it was launched, nor score anything.
May be killed at any instant and run again: what a segment holds is not computed twice.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hpcq.core.attempts import Attempt
from hpcq.core.completion import write_completion
from hpcq.core.errors import UserInputError
from hpcq.core.node_rank import Place
from hpcq.core.work import EvaluateWork
from hpcq.evaluate.backends.interface import Joining, make_backend
from hpcq.evaluate.prefix.chunks import cut, share
from hpcq.evaluate.provenance import provenance_of, verify_versions
from hpcq.evaluate.request_set import questions_of
from hpcq.evaluate.requests import Request
from hpcq.evaluate.resharding import answered_at_first
from hpcq.evaluate.unit_folders import unit_folders
from hpcq.store import RequestKey, SegmentWriter, load


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
    pieces = cut(questions.requests, rows=work.batch_size, shares_prefixes=work.shares_prefixes)
    mine = [piece.requests for piece in share(pieces, work.shard, answered)]
    total = sum(map(len, mine))
    missing = [piece for piece in mine if any(request.key not in known for request in piece)]
    restored = sum(request.key in known for piece in mine for request in piece)
    attempt.update(phase="loading", total=total, restored=restored)
    if missing:
        _answer(work, attempt, missing, known, addresses)
    write_completion(Path(work.segments_path), address=work.address, requests=total, attempt=attempt.record.attempt)
    attempt.update(phase=None, facts={"peak_memory_bytes": _peak_memory_bytes()})


def join(work: EvaluateWork, place: Place, batch_share: float) -> None:
    """Lend this node to the back end on node 0, until somebody ends the process. The store is none of its business.

    Raises:
        HpcqError: the tools do not allow it, or a process of the back end here has ended.
    """
    if not work.is_rehearsal:
        verify_versions(work.versions)
    backend = make_backend(replace(work, batch_share=batch_share, place=place))
    if not isinstance(backend, Joining):
        raise UserInputError(f"evaluate.backend: {work.backend!r} computes on one node, and was given {place.nodes}.")
    backend.join()


def _known(work: EvaluateWork, addresses: dict[str, str]) -> set[RequestKey]:
    """What the run's segments answer already, whichever shard computed it.

    A request on which segments disagree counts as answered: a third answer would settle nothing.
    """
    index = load(unit_folders(Path(work.segments_path).parent, work.variant), expect=addresses)
    return {*index.responses, *(conflict.key for conflict in index.conflicts)}


def _answer(
    work: EvaluateWork,
    attempt: Attempt,
    pieces: Sequence[Sequence[Request]],
    known: set[RequestKey],
    addresses: dict[str, str],
) -> None:
    backend = make_backend(replace(work, batch_share=attempt.batch_share, place=attempt.gather()))
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
        counts=backend.counts,
        flush_interval_s=work.flush_interval_s,
    )
    attempt.on_notice(writer.flush)
    answered = 0
    with writer:
        for request, response in backend.stream(pieces, known):
            if request.key not in known:
                writer.add(request.key, response)
                answered += 1
    seconds = time.monotonic() - loaded_s
    attempt.update(
        facts={
            "answered": answered,
            "answer_seconds": round(seconds, 3),
            "requests_per_second": answered / seconds,
            **backend.counts(),
        }
    )


def _peak_memory_bytes() -> int:
    """Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
