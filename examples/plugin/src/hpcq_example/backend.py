"""Backend that gives every byte the same probability: a baseline that knows only the length of a text."""

from __future__ import annotations

import math
import platform
from collections.abc import Container, Iterator, Sequence

from hpcq.core.work_records import EvaluateWork
from hpcq.evaluate.requests import GENERATE, Request
from hpcq.store import RequestKey, Response

_BYTE_LOGLIKELIHOOD = -math.log(256)


class ByteLengthBackend:
    """Scores each text by its number of bytes; see `hpcq.evaluate.backends.interface.Backend`."""

    def __init__(self, work: EvaluateWork) -> None:
        self._work = work

    def load(self) -> None:
        """Do nothing: it has no weights."""

    def stream(
        self, chunks: Sequence[Sequence[Request]], answered: Container[RequestKey]
    ) -> Iterator[tuple[Request, Response]]:
        """Yield every request whose key is not in `answered`, with its response."""
        for request in (request for chunk in chunks for request in chunk):
            if request.key not in answered:
                yield request, _answer(request)

    def token_counts(self) -> dict[str, int]:
        """Return an empty dict: there are no tokens."""
        return {}

    def describe(self) -> dict[str, str | int | float]:
        """Return what may influence the responses."""
        return {"device": f"{platform.machine()} CPU"}


def _answer(request: Request) -> Response:
    if request.kind == GENERATE:
        return Response(text="", cut_tokens=0)
    text = str(request.arguments[-1])  # the continuation, or the whole text
    loglikelihood = len(text.encode()) * _BYTE_LOGLIKELIHOOD
    is_greedy = None if len(request.arguments) == 1 else False
    return Response(loglikelihood=loglikelihood, is_greedy=is_greedy, cut_tokens=0)
