"""Hypothesis strategies for requests with common prefixes, and for budgets."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from hpcq.evaluate.prefix.batching import Budget
from hpcq.evaluate.prefix.radix_tree import TokenRequest
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD, Request
from hpcq.store import RequestKey, digest_of_arguments

budgets = st.builds(
    Budget,
    max_kv_tokens=st.sampled_from([0, 3, 8, 15, 30, 60, 1000]),
    max_batch_tokens=st.sampled_from([1, 12, 40, 1000]),
    max_batch_rows=st.integers(1, 6),
    pass_overhead_tokens=st.sampled_from([0, 2, 10, 300]),
)


def token_request(tokens: list[int], continuation: int = 1) -> TokenRequest:
    """Return a request of these tokens."""
    return TokenRequest(tokens=np.array(tokens, np.int32), continuation_length=continuation)


@st.composite
def token_request_lists(draw: st.DrawFn) -> list[TokenRequest]:
    """Draw up to 30 requests over few tokens; many have a common prefix, contain each other or are equal."""
    few = st.lists(st.sampled_from([0, 1, 256, 70_000]), min_size=0, max_size=6)
    beginnings = [[], *draw(st.lists(few, max_size=4))]
    found = []
    for _ in range(draw(st.integers(0, 30))):
        parts = draw(st.lists(st.sampled_from(beginnings), max_size=3))
        tokens = [token for part in parts for token in part] + draw(few)
        tokens = [*tokens, 1, 2][: max(2, len(tokens))]
        found.append(token_request(tokens, draw(st.integers(1, len(tokens) - 1))))
    return found


def request(task: str, document: int, index: int, context: str, kind: str = LOGLIKELIHOOD) -> Request:
    """Return a request with one of few continuations."""
    arguments = (context, {"max_gen_toks": 8} if kind == GENERATE else " choice"[: index + 2])
    key = RequestKey(task, "1", document, index, 0, digest_of_arguments(kind, arguments))
    return Request(key=key, kind=kind, arguments=arguments)


@st.composite
def request_lists(draw: st.DrawFn) -> list[Request]:
    """Draw documents of up to three tasks, with up to four requests each, after shared or different examples."""
    found = {}
    for _ in range(draw(st.integers(0, 15))):
        task, document = draw(st.sampled_from(["arc", "gsm", "mmlu"])), draw(st.integers(0, 30))
        examples = "An example. " * draw(st.sampled_from([0, 3, 40]))
        question = draw(st.text(max_size=12)) * draw(st.sampled_from([1, 20]))
        kind = GENERATE if task == "gsm" else LOGLIKELIHOOD
        for index in range(draw(st.integers(1, 4))):
            found[task, document, index] = request(task, document, index, examples + question, kind)
    return draw(st.permutations(list(found.values())))
