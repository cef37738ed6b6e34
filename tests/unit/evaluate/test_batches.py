"""Batches and shards: what a response may depend on."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from hpcq.evaluate.batches import _cost, cut, deal, share
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD, Request
from hpcq.store import RequestKey, digest_of_arguments
from hpcq.units import Shard


@st.composite
def request_lists(draw: st.DrawFn) -> list[Request]:
    """Requests of up to three tasks, two kinds and two generation limits, in any order."""
    rows = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["arc", "gsm", "mmlu"]),
                st.integers(0, 30),
                st.integers(0, 3),
                st.text(max_size=12),
                st.sampled_from([LOGLIKELIHOOD, GENERATE]),
                st.sampled_from([8, 64]),
            ),
            unique_by=lambda row: row[:3],
            max_size=40,
        )
    )
    return [_request(*row) for row in rows]


def _request(task: str, document: int, index: int, text: str, kind: str, limit: int) -> Request:
    arguments = (text, {"max_gen_toks": limit} if kind == GENERATE else " yes")
    key = RequestKey(task, "1", document, index, 0, digest_of_arguments(kind, arguments))
    return Request(key=key, kind=kind, arguments=arguments)


def _keys(batches: list[tuple[Request, ...]]) -> list[tuple[RequestKey, ...]]:
    return [tuple(request.key for request in batch) for batch in batches]


@settings(max_examples=40)
@given(request_lists(), st.integers(1, 9), st.integers(1, 9))
def test_shards_partition_batches(requests: list[Request], batch_size: int, count: int) -> None:
    """Every batch is whole in exactly one shard, and nothing else is in any."""
    batches = cut(requests, batch_size)

    dealt = [deal(batches, Shard(index=index, count=count)) for index in range(count)]

    assert sorted(_keys([batch for shard in dealt for batch in shard])) == sorted(_keys(batches))
    assert sorted(key for batch in _keys(batches) for key in batch) == sorted(request.key for request in requests)


@settings(max_examples=40)
@given(request_lists(), st.integers(1, 9), st.randoms(use_true_random=False))
def test_batches_do_not_depend_on_order(requests: list[Request], batch_size: int, chance: random.Random) -> None:
    """The order in which requests come changes no batch."""
    shuffled = [*requests]
    chance.shuffle(shuffled)

    assert _keys(cut(shuffled, batch_size)) == _keys(cut(requests, batch_size))


@settings(max_examples=40)
@given(request_lists(), st.integers(1, 9))
def test_batches_do_not_depend_on_other_tasks(requests: list[Request], batch_size: int) -> None:
    """A task's batches are the same whether it is asked alone or with others."""
    alone = [request for request in requests if request.key.task == "arc"]

    among_others = [batch for batch in cut(requests, batch_size) if batch[0].key.task == "arc"]

    assert _keys(among_others) == _keys(cut(alone, batch_size))


@settings(max_examples=40)
@given(request_lists(), st.integers(1, 9))
def test_batches_are_alike(requests: list[Request], batch_size: int) -> None:
    """A batch holds at most `batch_size` requests, of one task, kind and generation arguments, the longest first."""
    for batch in cut(requests, batch_size):
        assert len(batch) <= batch_size
        assert len({(request.key.task, request.kind, str(request.generation)) for request in batch}) == 1
        assert [request.length for request in batch] == sorted((request.length for request in batch), reverse=True)


@settings(max_examples=40)
@given(request_lists(), st.integers(1, 9), st.integers(1, 9))
def test_shards_are_balanced(requests: list[Request], batch_size: int, count: int) -> None:
    """No shard has more to do than another by more than one batch."""
    batches = cut(requests, batch_size)

    loads = [sum(map(_cost, deal(batches, Shard(index=index, count=count)))) for index in range(count)]

    assert max(loads) - min(loads) <= max(map(_cost, batches), default=0)


@settings(max_examples=60)
@given(request_lists(), st.integers(1, 9), st.integers(1, 9), st.data())
def test_shares_partition_whatever_is_answered(
    requests: list[Request], batch_size: int, count: int, data: st.DataObject
) -> None:
    """Whichever requests are answered, every batch is whole in exactly one shard, so a lost answer is somebody's."""
    keys = [request.key for request in requests]
    answered = data.draw(st.sets(st.sampled_from(keys))) if keys else set()
    batches = cut(requests, batch_size)

    shared = [share(batches, Shard(index=index, count=count), answered) for index in range(count)]

    assert sorted(_keys([batch for part in shared for batch in part])) == sorted(_keys(batches))


@settings(max_examples=60)
@given(request_lists(), st.integers(1, 9), st.integers(1, 9), st.data())
def test_what_is_missing_is_shared_evenly(
    requests: list[Request], batch_size: int, count: int, data: st.DataObject
) -> None:
    """However unevenly the answers lie, no shard lacks more than another by more than one batch."""
    keys = [request.key for request in requests]
    answered = data.draw(st.sets(st.sampled_from(keys))) if keys else set()
    missing = [
        [
            _cost(batch)
            for batch in share(cut(requests, batch_size), Shard(index=index, count=count), answered)
            if any(request.key not in answered for request in batch)
        ]
        for index in range(count)
    ]
    loads = [sum(costs) for costs in missing]

    assert max(loads) - min(loads) <= max((cost for costs in missing for cost in costs), default=0)


def test_work_of_which_two_shards_are_done_is_shared_anew() -> None:
    """Where two of four shards were finished, seven shards get a seventh of the rest each, within a few percent."""
    requests = [_request("mmlu", document, 0, "x" * (document % 97), LOGLIKELIHOOD, 8) for document in range(4000)]
    batches = cut(requests, 4)
    done = {
        request.key for index in (0, 1) for batch in deal(batches, Shard(index=index, count=4)) for request in batch
    }

    loads = [
        sum(_cost(batch) for batch in share(batches, Shard(index=index, count=7), done) if batch[0].key not in done)
        for index in range(7)
    ]

    assert max(loads) / (sum(loads) / len(loads)) < 1.02
