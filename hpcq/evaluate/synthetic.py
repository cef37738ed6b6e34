"""The rehearsal back end: responses derived from a request's digest, at a settable pace, without any model.

Knows requests and `EvaluateWork.pace` (request_seconds, load_seconds, memory_gib). Its responses are never scores.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from hpcq import __version__
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD_ROLLING, Request
from hpcq.store import Response
from hpcq.units import EvaluateWork

_GIB = 2**30
_LARGEST_LOSS = 32.0


class SyntheticBackend:
    """Answers at once, or as slowly as a model would."""

    def __init__(self, work: EvaluateWork) -> None:
        self._pace = dict(work.pace)
        self._memory = b""

    def load(self) -> None:
        """Take the time and the memory that were asked for; every page is written, so that it is really held."""
        time.sleep(self._pace.get("load_seconds", 0.0))
        self._memory = b"\x01" * int(self._pace.get("memory_gib", 0.0) * _GIB)

    def answer(self, batch: Sequence[Request]) -> list[Response]:
        """One made-up response a request."""
        time.sleep(self._pace.get("request_seconds", 0.0) * len(batch))
        return [_response(request) for request in batch]

    def describe(self) -> dict[str, str | int | float]:
        """That this is a rehearsal."""
        return {"rehearsal": f"hpcq {__version__}", "device": "none", **self._pace}


def _response(request: Request) -> Response:
    digest = request.key.digest
    if request.kind == GENERATE:
        return Response(text=f"rehearsal {digest}")
    loss = int(digest[:8], 16) / 2**32 * _LARGEST_LOSS
    if request.kind == LOGLIKELIHOOD_ROLLING:
        return Response(loglikelihood=-loss)
    return Response(loglikelihood=-loss, is_greedy=int(digest[8], 16) == 0)
