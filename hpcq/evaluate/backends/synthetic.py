"""The rehearsal back end: responses derived from a request's digest, at a settable pace, without any model.

Knows requests and `EvaluateWork.pace` (request_seconds, load_seconds, memory_gib; memory_gib_of_others: what the unit's
other nodes hold beyond it; most_at_once: requests of which one more is out of memory; refused: whether the input is
bad). Its responses are never scores.
Where HPCQ_SYNTHETIC_JOURNAL names a folder, each process writes down there what it answers and when: a kill loses what
was not committed, and only so can be told how much that was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from hpcq import __version__
from hpcq.core.errors import UserInputError
from hpcq.core.work import EvaluateWork
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD_ROLLING, Request
from hpcq.store import RequestKey, Response

JOURNAL_VARIABLE = "HPCQ_SYNTHETIC_JOURNAL"

_GIB = 2**30
_LARGEST_LOSS = 32.0


class SyntheticBackend:
    """Answers at once, or as slowly as a model would."""

    def __init__(self, work: EvaluateWork) -> None:
        self._pace = dict(work.pace)
        self._memory = b""
        self._variant = work.variant.id
        self._batch_size = max(1, int(work.batch_size * work.batch_share))
        folder = os.environ.get(JOURNAL_VARIABLE)
        # Never closed: it is the process's own, and lines are written whole.
        self._journal = _journal_in(Path(folder)) if folder else None

    def load(self) -> None:
        """Take the time and the memory that were asked for; every page is written, so that it is really held."""
        time.sleep(self._pace.get("load_seconds", 0.0))
        if self._pace.get("refused"):
            raise UserInputError("This rehearsal was told to refuse its input.")
        self._memory = b"\x01" * int(self._pace.get("memory_gib", 0.0) * _GIB)

    def join(self) -> None:
        """Load as node 0 does, and wait."""
        self.load()
        self._memory = b"\x01" * int(self._pace.get("memory_gib_of_others", 0.0) * _GIB)
        while True:
            time.sleep(1.0)

    def stream(
        self, pieces: Sequence[Sequence[Request]], known: Container[RequestKey]
    ) -> Iterator[tuple[Request, Response]]:
        """Made-up responses, a batch at a time."""
        for piece in pieces:
            for begin in range(0, len(piece), self._batch_size):
                batch = piece[begin : begin + self._batch_size]
                if any(request.key not in known for request in batch):
                    yield from zip(batch, self._answer(batch), strict=True)

    def counts(self) -> dict[str, int]:
        """Nothing: there are no tokens."""
        return {}

    def _answer(self, batch: Sequence[Request]) -> list[Response]:
        most = self._pace.get("most_at_once", len(batch))
        if len(batch) > most:
            raise MemoryError(f"rehearsed: {len(batch)} requests at once, and there is memory for {most:g}")
        time.sleep(self._pace.get("request_seconds", 0.0) * len(batch))
        if self._journal is not None:
            os.write(self._journal, self._lines(batch).encode())
        return [_response(request) for request in batch]

    def _lines(self, batch: Sequence[Request]) -> str:
        """One a request: seconds of the host's monotonic clock, the variant, and the request's key."""
        return "".join(
            f"{time.monotonic():.3f} {self._variant} {' '.join(map(str, request.key))}\n" for request in batch
        )

    def describe(self) -> dict[str, str | int | float]:
        """That this is a rehearsal."""
        return {"rehearsal": f"hpcq {__version__}", "device": "none", **self._pace}


def _journal_in(folder: Path) -> int:
    """Open this process's file; a number of a process may come again."""
    name = f"{os.getpid()}.{time.monotonic_ns()}"
    return os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def _response(request: Request) -> Response:
    digest = request.key.digest
    if request.kind == GENERATE:
        return Response(text=f"rehearsal {digest}")
    loss = int(digest[:8], 16) / 2**32 * _LARGEST_LOSS
    if request.kind == LOGLIKELIHOOD_ROLLING:
        return Response(loglikelihood=-loss)
    return Response(loglikelihood=-loss, is_greedy=int(digest[8], 16) == 0)
