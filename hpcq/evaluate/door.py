"""The one door to every back end: what a back end is, and how one is found by name.

Knows the vocabulary and the shape of a request. Must not import any model library: a back end does, when it loads.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Protocol

from hpcq.errors import UserInputError
from hpcq.evaluate.requests import Request
from hpcq.store import Response
from hpcq.units import EvaluateWork

ENTRY_POINTS = "hpcq.backends"


class Backend(Protocol):
    """What answers requests. Made from an `EvaluateWork`; nothing heavy happens before `load`."""

    def load(self) -> None:
        """Bring the model to the device."""

    def answer(self, batch: Sequence[Request]) -> list[Response]:
        """One response a request, in order; all of a batch are of one task, kind and generation arguments.

        A function of the batch alone: the same batch gives the same responses, bit by bit, whatever came before it.
        """

    def describe(self) -> dict[str, str | int | float]:
        """What may have shaped the responses: versions, device, dtype, threads."""


_BUILT_IN = {
    "accelerate": "hpcq.evaluate.accelerate:AccelerateBackend",
    "synthetic": "hpcq.evaluate.synthetic:SyntheticBackend",
    "vllm": "hpcq.evaluate.vllm:VllmBackend",
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
