"""Fidelity panel on vLLM: the same tokens and log-probabilities as with transformers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hpcq.core.errors import UserInputError, WorkerError
from hpcq.evaluate.backends.transformers.backend import AccelerateBackend
from hpcq.evaluate.backends.vllm.backend import VllmBackend
from hpcq.evaluate.requests import TOP_LOGPROBS, Request
from hpcq.store import RequestKey, TopLogprobs, digest_of_arguments
from hpcq.store.top_logprobs import unpack
from tests.vllm.conftest import MAX_LENGTH, PROSE, QUESTION, answers

TOP, TOLERANCE = 64, 1e-3


def windows(*texts: str, length: int) -> list[Request]:
    """Requests of a panel with these texts."""
    arguments = [(text, length, TOP) for text in texts]
    return [
        Request(
            key=RequestKey("fidelity_panel", "1", number, 0, 0, digest_of_arguments(TOP_LOGPROBS, one)),
            kind=TOP_LOGPROBS,
            arguments=one,
        )
        for number, one in enumerate(arguments)
    ]


def test_both_backends_read_the_same(backend: VllmBackend) -> None:
    """Tokens are equal, and log-probabilities of tokens that follow and of all common top tokens are within 1e-3.

    The windows are longer than a block of vLLM's cache, and the second text is read twice: no cached token is used.
    """
    requests = windows(PROSE * 4, QUESTION * 3, QUESTION * 3 + PROSE, length=100)
    accelerate = AccelerateBackend(replace(backend._work, backend="accelerate", engine_options=()))
    accelerate.load()
    for one, other in zip(answers(backend, requests), answers(accelerate, requests), strict=True):
        assert one.logprobs
        assert other.logprobs
        ours, theirs = unpack(one.logprobs), unpack(other.logprobs)
        assert np.array_equal(ours.tokens, theirs.tokens)
        assert np.abs(ours.next_logprobs - theirs.next_logprobs).max() < TOLERANCE
        assert one.loglikelihood == pytest.approx(other.loglikelihood, abs=TOLERANCE)
        assert _largest_difference(ours, theirs) < TOLERANCE


def _largest_difference(ours: TopLogprobs, theirs: TopLogprobs) -> float:
    found = []
    for position in range(len(ours.top_ids)):
        mine, others = (
            dict(zip(one.top_ids[position].tolist(), one.top_logprobs[position].tolist(), strict=True))
            for one in (ours, theirs)
        )
        common = mine.keys() & others.keys()
        assert len(common) >= TOP - 1
        found += [abs(mine[token] - others[token]) for token in common]
    return max(found)


def test_a_text_with_too_few_tokens_is_an_error(backend: VllmBackend) -> None:
    """A window is never shorter than the others."""
    with pytest.raises(WorkerError, match=r"^Window 0 of the fidelity panel has \d+ tokens, fewer than the 300"):
        answers(backend, windows(PROSE, length=300))


def test_a_window_must_fit_the_model(backend: VllmBackend) -> None:
    """vLLM needs room for one more token than the window has."""
    with pytest.raises(UserInputError, match=f"use a window of {MAX_LENGTH - 1} or less"):
        answers(backend, windows(PROSE * 20, length=MAX_LENGTH))
