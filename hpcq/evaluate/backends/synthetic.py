"""Synthetic backend: responses derived from a request's digest, at a configurable speed, without a model.

Its responses are never scores. Keys of `EvaluateWork.synthetic_options`:

    load_seconds             time to load
    request_seconds          time per request
    memory_gib               memory to allocate, in GiB
    follower_memory_gib      memory to allocate on nodes of rank > 0, in GiB
    max_requests_per_batch   a larger batch is out of memory
    reject_input             whether `load` rejects the input

If HPCQ_SYNTHETIC_JOURNAL names a folder, each process logs there which requests it answers and when. Tests compare it
with the store to measure how many responses a kill lost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from hpcq import __version__
from hpcq.core.errors import UserInputError
from hpcq.core.work_records import EvaluateWork
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD_ROLLING, TOP_LOGPROBS, Request
from hpcq.store import RequestKey, Response, TopLogprobs

JOURNAL_VARIABLE = "HPCQ_SYNTHETIC_JOURNAL"

_GIB = 2**30
_MAX_LOSS = 32.0


class SyntheticBackend:
    """Answers immediately, or as slowly as a model would."""

    def __init__(self, work: EvaluateWork) -> None:
        self._options = dict(work.synthetic_options)
        self._memory = b""
        self._variant = work.variant.id
        self._batch_size = max(1, int(work.batch_size * work.batch_share))
        folder = os.environ.get(JOURNAL_VARIABLE)
        # Never closed: the file belongs to this process, and every write is a whole number of lines.
        self._journal = _open_journal(Path(folder)) if folder else None

    def load(self) -> None:
        """Take the configured time and memory. Every page is written, so that the memory is resident."""
        time.sleep(self._options.get("load_seconds", 0.0))
        if self._options.get("reject_input"):
            raise UserInputError("The synthetic backend rejects its input (reject_input).")
        self._memory = b"\x01" * int(self._options.get("memory_gib", 0.0) * _GIB)

    def run_follower(self) -> None:
        """Load as rank 0 does, then wait."""
        self.load()
        self._memory = b"\x01" * int(self._options.get("follower_memory_gib", 0.0) * _GIB)
        while True:
            time.sleep(1.0)

    def stream(
        self, chunks: Sequence[Sequence[Request]], answered: Container[RequestKey]
    ) -> Iterator[tuple[Request, Response]]:
        """Yield synthetic responses, batch by batch."""
        for chunk in chunks:
            for start in range(0, len(chunk), self._batch_size):
                batch = chunk[start : start + self._batch_size]
                if any(request.key not in answered for request in batch):
                    yield from zip(batch, self._answer(batch), strict=True)

    def token_counts(self) -> dict[str, int]:
        """Return an empty dict: there are no tokens."""
        return {}

    def _answer(self, batch: Sequence[Request]) -> list[Response]:
        limit = self._options.get("max_requests_per_batch", len(batch))
        if len(batch) > limit:
            raise MemoryError(f"synthetic: a batch of {len(batch)} requests exceeds max_requests_per_batch ({limit:g})")
        time.sleep(self._options.get("request_seconds", 0.0) * len(batch))
        if self._journal is not None:
            os.write(self._journal, self._journal_lines(batch).encode())
        return [_response(request) for request in batch]

    def _journal_lines(self, batch: Sequence[Request]) -> str:
        """One line per request: seconds of the host's monotonic clock, the variant, and the request's key."""
        return "".join(
            f"{time.monotonic():.3f} {self._variant} {' '.join(map(str, request.key))}\n" for request in batch
        )

    def describe(self) -> dict[str, str | int | float]:
        """Return the synthetic options, and a mark that the responses are synthetic."""
        return {"rehearsal": f"hpcq {__version__}", "device": "none", **self._options}


def _open_journal(folder: Path) -> int:
    """Open this process's file. Its name has the time, too, because process ids are reused."""
    name = f"{os.getpid()}.{time.monotonic_ns()}"
    return os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def _response(request: Request) -> Response:
    digest = request.key.digest
    if request.kind == GENERATE:
        return Response(text=f"rehearsal {digest}", cut_tokens=0)
    loss = int(digest[:8], 16) / 2**32 * _MAX_LOSS
    if request.kind == TOP_LOGPROBS:
        return _window(request)
    if request.kind == LOGLIKELIHOOD_ROLLING:
        return Response(loglikelihood=-loss, cut_tokens=0)
    return Response(loglikelihood=-loss, is_greedy=int(digest[8], 16) == 0, cut_tokens=0)


def _window(request: Request) -> Response:
    """Return log-probabilities of a fidelity panel's size: the digest seeds them, and the first token follows."""
    import numpy as np

    _, tokens, top = request.arguments
    seed = np.random.default_rng(int(request.key.digest, 16))
    logprobs = -np.sort(seed.exponential(4.0, (tokens - 1, top)) + np.log(2 * top), axis=1).astype(np.float32)
    ids = np.argsort(seed.random((tokens - 1, top)), axis=1).astype(np.int32)
    read = np.concatenate([[0], ids[:, 0]]).astype(np.int32)
    found = TopLogprobs(tokens=read, next_logprobs=logprobs[:, 0], top_ids=ids, top_logprobs=logprobs)
    return Response(loglikelihood=found.loglikelihood, cut_tokens=0, logprobs=found.packed())
