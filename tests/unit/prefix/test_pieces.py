"""Pieces: what a response may depend on, and what cutting costs."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcq.core.work import Shard
from hpcq.evaluate.prefix.chunks import Piece, cut, deal, share
from hpcq.evaluate.requests import GENERATE, Request
from hpcq.store import RequestKey
from tests.unit.prefix.drawing import request, request_lists


def _keys(pieces: list[Piece]) -> list[tuple[RequestKey, ...]]:
    return [tuple(one.key for one in piece.requests) for piece in pieces]


@settings(max_examples=40)
@given(request_lists(), st.integers(1, 9), st.integers(1, 4), st.integers(100, 20_000))
def test_shards_partition_pieces(requests: list[Request], count: int, rows: int, most_bytes: int) -> None:
    """Every request is in one piece, and every piece is whole in exactly one shard."""
    pieces = cut(requests, rows=rows, most_bytes=most_bytes)

    dealt = [piece for index in range(count) for piece in deal(pieces, Shard(index=index, count=count))]

    assert sorted(_keys(dealt)) == sorted(_keys(pieces))
    assert sorted(key for piece in _keys(pieces) for key in piece) == sorted(one.key for one in requests)
    assert all(piece.requests for piece in pieces)


@settings(max_examples=40)
@given(request_lists(), st.integers(100, 20_000), st.randoms(use_true_random=False))
def test_pieces_do_not_depend_on_order_or_other_tasks(
    requests: list[Request], most_bytes: int, chance: random.Random
) -> None:
    """A task's pieces are the same whether it is asked alone or with others, in whatever order."""
    shuffled = chance.sample(requests, len(requests))
    alone = [one for one in requests if one.key.task == "arc"]

    among_others = [piece for piece in cut(shuffled, most_bytes=most_bytes) if piece.requests[0].key.task == "arc"]

    assert _keys(among_others) == _keys(cut(alone, most_bytes=most_bytes))


@settings(max_examples=40)
@given(request_lists(), st.integers(1, 4))
def test_a_piece_is_of_one_kind(requests: list[Request], rows: int) -> None:
    """A piece's requests are of one task, kind and generation arguments; of generation, `rows` at most."""
    for piece in cut(requests, rows=rows):
        assert len({(one.key.task, one.kind, str(one.generation)) for one in piece.requests}) == 1
        assert piece.requests[0].kind != GENERATE or len(piece.requests) <= rows


@settings(max_examples=40)
@given(request_lists(), st.integers(100, 20_000))
def test_a_cost_counts_what_is_shared_once(requests: list[Request], most_bytes: int) -> None:
    """A piece of log-likelihoods costs its distinct beginnings, and one byte a request."""
    for piece in cut(requests, most_bytes=most_bytes):
        texts = ["".join(one.arguments).encode() for one in piece.requests if one.kind != GENERATE]
        if texts:
            beginnings = {text[:end] for text in texts for end in range(1, len(text) + 1)}
            assert piece.cost == len(beginnings) + len(texts)


@settings(max_examples=40)
@given(request_lists(), st.integers(1, 9))
def test_shards_are_balanced(requests: list[Request], count: int) -> None:
    """No shard has more to do than another by more than one piece."""
    pieces = cut(requests)

    loads = [sum(piece.cost for piece in deal(pieces, Shard(index=index, count=count))) for index in range(count)]

    assert max(loads) - min(loads) <= max((piece.cost for piece in pieces), default=0)


@settings(max_examples=40)
@given(request_lists(), st.integers(1, 5), st.sets(st.integers(0, 60)))
def test_open_pieces_come_first(requests: list[Request], count: int, known: set[int]) -> None:
    """A shard computes what has missing responses before what has none; all shards together have everything."""
    answered = {one.key for number, one in enumerate(requests) if number in known}
    pieces = cut(requests)

    shares = [share(pieces, Shard(index=index, count=count), answered) for index in range(count)]

    assert sorted(_keys([piece for one in shares for piece in one])) == sorted(_keys(pieces))
    for one in shares:
        is_settled = [all(member.key in answered for member in piece.requests) for piece in one]
        assert is_settled == sorted(is_settled)


def _exam(examples: str, questions: int) -> list[Request]:
    """Questions of about 600 bytes with four choices each, behind the same examples."""
    chance = np.random.default_rng(5)
    return [
        request("exam", number, choice, context)
        for number in range(questions)
        for context in [examples + "".join(chance.choice([*"abcdefgh "], 600)) + "?"]
        for choice in range(4)
    ]


def test_few_examples_are_computed_again() -> None:
    """A block of examples is computed again in every piece, which adds three per cent to the work at most."""
    examples = "An example. " * 400

    pieces = cut(_exam(examples, questions=1500))

    cost = sum(piece.cost for piece in pieces)
    assert len(pieces) > 3
    assert cost <= 1.03 * (cost - (len(pieces) - 1) * len(examples))


@pytest.mark.parametrize("count", [2, 3, 7, 8])
def test_one_large_task_fills_shards_evenly(count: int) -> None:
    """The slowest shard of a task whose questions share little has 3 % more to do than the mean, at most."""
    pieces = cut(_exam("", questions=3000))

    loads = [sum(piece.cost for piece in deal(pieces, Shard(index=index, count=count))) for index in range(count)]

    assert max(loads) * count <= 1.03 * sum(loads)


@pytest.mark.parametrize("examples", ["", "An example. " * 100])
def test_questions_stay_whole(examples: str) -> None:
    """No piece ends between the choices of a question."""
    pieces = cut(_exam(examples, questions=500))

    questions = [{one.key.doc_id for one in piece.requests} for piece in pieces]

    assert len(pieces) > 1
    assert sum(map(len, questions)) == 500


def test_a_piece_is_bounded() -> None:
    """However much cutting costs, a piece is no more than a quarter larger than its bound, and one question."""
    pieces = cut(_exam("An example. " * 1000, questions=500), most_bytes=30_000)

    assert len(pieces) > 10
    assert max(piece.cost for piece in pieces) <= 1.25 * 30_000 + 1_000
