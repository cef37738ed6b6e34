"""The one door to every back end: what a back end is, and how one is found by name.

Knows the vocabulary and the shape of a request. Must not import any model library: a back end does, when it loads.
"""

from __future__ import annotations

import importlib
from collections.abc import Container, Iterator, Sequence
from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

from hpcq.core.errors import UserInputError
from hpcq.core.work import EvaluateWork
from hpcq.evaluate.requests import Request
from hpcq.store import RequestKey, Response

ENTRY_POINTS = "hpcq.backends"


class Backend(Protocol):
    """What answers requests. Made from an `EvaluateWork`; nothing heavy happens before `load`."""

    def load(self) -> None:
        """Bring the model to the device."""

    def stream(
        self, pieces: Sequence[Sequence[Request]], known: Container[RequestKey]
    ) -> Iterator[tuple[Request, Response]]:
        """Every request whose key is not in `known`, with its response, as it becomes known; others may come too.

        The requests of a piece are of one task, kind and generation arguments. A response is a function of its piece
        alone, bit by bit, whatever is known and whatever came before; a back end that cannot keep that says in
        `describe`, as "varies", by how much a log-likelihood may differ.
        """

    def counts(self) -> dict[str, int]:
        """asked_tokens: of all log-likelihood requests so far, each in full; computed_tokens: of them. Empty: unknown.

        Asked from any thread.
        """

    def describe(self) -> dict[str, str | int | float]:
        """What may have shaped the responses: versions, device, dtype, threads."""


@runtime_checkable
class Joining(Protocol):
    """A back end that can compute on several nodes: `EvaluateWork.place` says on which of them it is."""

    def join(self) -> None:
        """On all nodes but the first: serve the one that was loaded there. Returns never, raises what ends it."""


_BUILT_IN = {
    "accelerate": "hpcq.evaluate.backends.transformers.backend:AccelerateBackend",
    "synthetic": "hpcq.evaluate.backends.synthetic:SyntheticBackend",
    "vllm": "hpcq.evaluate.backends.vllm.backend:VllmBackend",
}


def make_backend(work: EvaluateWork) -> Backend:
    """The back end that `work` names, not loaded yet. A third party cannot take a built-in name.

    Raises:
        UserInputError: nobody offers a back end of that name.
    """
    if work.backend in _BUILT_IN:
        module, _, name = _BUILT_IN[work.backend].partition(":")
        return getattr(importlib.import_module(module), name)(work)
    offered = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if work.backend in offered:
        return offered[work.backend].load()(work)
    known = ", ".join(sorted({*_BUILT_IN, *offered}))
    raise UserInputError(f"evaluate.backend: there is no back end {work.backend!r} here; there is {known}.")
