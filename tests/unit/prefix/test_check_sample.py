"""The sample of requests with which prefix sharing is checked."""

from __future__ import annotations

import random

from hpcq.evaluate.prefix.check_sample import check_sample
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD, Request
from hpcq.store import RequestKey


def request(number: int, context: str, continuation: str, kind: str = LOGLIKELIHOOD) -> Request:
    """Return a request of a task that lm-eval does not have."""
    return Request(key=RequestKey("made_up", "1", number, 0, 0, "0" * 64), kind=kind, arguments=(context, continuation))


def test_the_longest_and_the_median_request_are_chosen_each_with_a_neighbor() -> None:
    """The sample has the run's longest request, and of both documents a request that shares their context."""
    documents = [f"{name} " + "text " * length for name, length in (("A", 5), ("B", 90), ("C", 20))]
    requests = [
        request(10 * document + choice, context, f"choice {choice}")
        for document, context in enumerate(documents)
        for choice in range(4)
    ]

    found = check_sample(requests)

    assert [one.arguments[0][0] for one in found] == ["B", "B", "C", "C"]
    assert len({one.key for one in found}) == 4


def test_the_sample_depends_on_the_requests_alone() -> None:
    """Every shard has the same sample, in any order of the requests."""
    requests = [request(number, "x" * (number % 17), f"{number}") for number in range(60)]
    other = random.Random(1).sample(requests, len(requests))  # noqa: S311  reproducible, not secret

    assert [one.key for one in check_sample(requests)] == [one.key for one in check_sample(other)]


def test_only_log_likelihoods_are_sampled() -> None:
    """A run without log-likelihoods has an empty sample, and a single request needs no neighbor."""
    assert check_sample([request(1, "a", "b", GENERATE)]) == []
    assert [one.key.doc_id for one in check_sample([request(1, "a", "b")])] == [1]
