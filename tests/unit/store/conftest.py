"""Fixtures for the tests of the store: rows, segments, comparison of responses."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from hpcq.store import RequestKey, Response, SegmentWriter, TopLogprobs, digest_of_arguments

ADDRESSES = {"arc": "a" * 64, "gsm8k": "b" * 64}
Row = tuple[RequestKey, Response]

PACKED_WINDOWS = [
    TopLogprobs(
        tokens=np.array([1, 2, 3], np.int32),
        next_logprobs=np.full(2, value, np.float32),
        top_ids=np.array([[2, 1], [3, 1]], np.int32),
        top_logprobs=np.full((2, 2), value, np.float32),
    ).packed()
    for value in (-0.5, -0.75)
]
"""Two windows of a fidelity panel."""


@pytest.fixture
def addresses() -> dict[str, str]:
    """Task → address, as in the segments of the tests."""
    return dict(ADDRESSES)


@pytest.fixture
def key() -> Callable[..., RequestKey]:
    """Return a function that makes the key of a document's only request."""

    def make(doc_id: int, task: str = "arc") -> RequestKey:
        digest = digest_of_arguments("loglikelihood", [task, doc_id])
        return RequestKey(task=task, task_version="1.0", doc_id=doc_id, request_index=0, repeat=0, digest=digest)

    return make


@pytest.fixture
def write() -> Callable[..., Path]:
    """Return a function that commits rows as one segment and returns its path."""

    def make(
        folder: Path,
        rows: Iterable[Row],
        *,
        addresses: dict[str, str] | None = None,
        attempt: int = 1,
        **provenance: float,
    ) -> Path:
        writer = SegmentWriter(
            folder,
            attempt=attempt,
            addresses=addresses or ADDRESSES,
            provenance={"node": "n1", **provenance},
            flush_interval_s=1e9,
        )
        writer.add_all(rows)
        path = writer.flush()
        assert path is not None
        return path

    return make


@pytest.fixture
def bits() -> Callable[[Response], tuple[object, ...]]:
    """Return a function that makes responses comparable bit by bit: NaN equals NaN, -0.0 differs from 0.0."""

    def make(response: Response) -> tuple[object, ...]:
        number = None if response.loglikelihood is None else struct.pack("<d", response.loglikelihood)
        return (number, response.is_greedy, response.text, response.logprobs)

    return make
