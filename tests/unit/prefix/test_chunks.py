"""Chunks of requests: what they depend on, their balance over shards, and the cost of cutting."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcq.core.work_records import Shard
from hpcq.evaluate.prefix.request_chunks import Chunk, balanced_part, chunks_of_shard, partition
from hpcq.evaluate.requests import GENERATE, Request
from hpcq.store import RequestKey
from tests.unit.prefix.strategies import request, request_lists


def _keys(chunks: list[Chunk]) -> list[tuple[RequestKey, ...]]:
    return [tuple(one.key for one in chunk.requests) for chunk in chunks]


@settings(max_examples=40)
@given(request_lists(), st.integers(1, 9), st.integers(1, 4), st.integers(100, 20_000))
def test_shards_partition_chunks(requests: list[Request], count: int, rows: int, max_bytes: int) -> None:
    """Every request is in one chunk, and every chunk is in exactly one shard."""
    chunks = partition(requests, rows=rows, max_bytes=max_bytes)

    assigned = [chunk for index in range(count) for chunk in balanced_part(chunks, Shard(index=index, count=count))]

    assert sorted(_keys(assigned)) == sorted(_keys(chunks))
    assert sorted(key for chunk in _keys(chunks) for key in chunk) == sorted(one.key for one in requests)
    assert all(chunk.requests for chunk in chunks)


@settings(max_examples=40)
@given(request_lists(), st.integers(100, 20_000), st.randoms(use_true_random=False))
def test_chunks_do_not_depend_on_order_or_other_tasks(
    requests: list[Request], max_bytes: int, chance: random.Random
) -> None:
    """A task's chunks are the same alone and together with other tasks, in any order of the requests."""
    shuffled = chance.sample(requests, len(requests))
    alone = [one for one in requests if one.key.task == "arc"]

    among_others = [chunk for chunk in partition(shuffled, max_bytes=max_bytes) if chunk.requests[0].key.task == "arc"]

    assert _keys(among_others) == _keys(partition(alone, max_bytes=max_bytes))


@settings(max_examples=40)
@given(request_lists(), st.integers(1, 4))
def test_a_chunk_is_of_one_kind(requests: list[Request], rows: int) -> None:
    """A chunk's requests have one task, kind and generation arguments; a chunk of generation has at most `rows`."""
    for chunk in partition(requests, rows=rows):
        assert len({(one.key.task, one.kind, str(one.generation_kwargs)) for one in chunk.requests}) == 1
        assert chunk.requests[0].kind != GENERATE or len(chunk.requests) <= rows


@settings(max_examples=40)
@given(request_lists(), st.integers(100, 20_000))
def test_a_cost_counts_shared_prefixes_once(requests: list[Request], max_bytes: int) -> None:
    """The cost of a chunk of log-likelihoods is the number of its distinct prefixes plus one byte per request."""
    for chunk in partition(requests, max_bytes=max_bytes):
        texts = ["".join(one.arguments).encode() for one in chunk.requests if one.kind != GENERATE]
        if texts:
            prefixes = {text[:end] for text in texts for end in range(1, len(text) + 1)}
            assert chunk.cost == len(prefixes) + len(texts)


@settings(max_examples=40)
@given(request_lists(), st.integers(1, 9))
def test_shards_are_balanced(requests: list[Request], count: int) -> None:
    """The loads of two shards differ by at most one chunk."""
    chunks = partition(requests)

    loads = [
        sum(chunk.cost for chunk in balanced_part(chunks, Shard(index=index, count=count))) for index in range(count)
    ]

    assert max(loads) - min(loads) <= max((chunk.cost for chunk in chunks), default=0)


@settings(max_examples=40)
@given(request_lists(), st.integers(1, 5), st.sets(st.integers(0, 60)))
def test_open_chunks_come_first(requests: list[Request], count: int, known: set[int]) -> None:
    """A shard computes chunks with missing responses before complete ones; all shards together have all chunks."""
    answered = {one.key for number, one in enumerate(requests) if number in known}
    chunks = partition(requests)

    shards = [chunks_of_shard(chunks, Shard(index=index, count=count), answered) for index in range(count)]

    assert sorted(_keys([chunk for mine in shards for chunk in mine])) == sorted(_keys(chunks))
    for mine in shards:
        is_complete = [all(member.key in answered for member in chunk.requests) for chunk in mine]
        assert is_complete == sorted(is_complete)


def _exam(examples: str, questions: int) -> list[Request]:
    """Return questions of about 600 bytes with four choices each, after the same examples."""
    chance = np.random.default_rng(5)
    return [
        request("exam", number, choice, context)
        for number in range(questions)
        for context in [examples + "".join(chance.choice([*"abcdefgh "], 600)) + "?"]
        for choice in range(4)
    ]


def test_few_examples_are_computed_again() -> None:
    """A block of examples is computed again in every chunk, which adds at most three per cent to the work."""
    examples = "An example. " * 400

    chunks = partition(_exam(examples, questions=1500))

    cost = sum(chunk.cost for chunk in chunks)
    assert len(chunks) > 3
    assert cost <= 1.03 * (cost - (len(chunks) - 1) * len(examples))


@pytest.mark.parametrize("count", [2, 3, 7, 8])
def test_one_large_task_fills_shards_evenly(count: int) -> None:
    """The largest load of a task whose questions share little is at most 3 % above the mean."""
    chunks = partition(_exam("", questions=3000))

    loads = [
        sum(chunk.cost for chunk in balanced_part(chunks, Shard(index=index, count=count))) for index in range(count)
    ]

    assert max(loads) * count <= 1.03 * sum(loads)


@pytest.mark.parametrize("examples", ["", "An example. " * 100])
def test_questions_stay_whole(examples: str) -> None:
    """No chunk ends between the choices of a question."""
    chunks = partition(_exam(examples, questions=500))

    questions = [{one.key.doc_id for one in chunk.requests} for chunk in chunks]

    assert len(chunks) > 1
    assert sum(map(len, questions)) == 500


def test_a_chunk_is_bounded() -> None:
    """At any cost of cutting, a chunk exceeds its bound by at most a quarter and one question."""
    chunks = partition(_exam("An example. " * 1000, questions=500), max_bytes=30_000)

    assert len(chunks) > 10
    assert max(chunk.cost for chunk in chunks) <= 1.25 * 30_000 + 1_000
