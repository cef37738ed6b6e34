"""Self-check of prefix sharing: log-likelihoods from shared prefixes, compared with those of whole requests.

How much two correct computations of a request may differ is measured too: whole requests are computed one by one and in
batches, which is what lm-eval does with two batch sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from hpcq.evaluate.backends.transformers.prefix_scoring.engine import Engine
from hpcq.evaluate.backends.transformers.prefix_scoring.forward import Forward, gather_logprobs
from hpcq.evaluate.prefix.agreement import MAX_READ_TOKENS, Agreement, largest_difference
from hpcq.evaluate.prefix.batching import Budget
from hpcq.evaluate.prefix.planner import plan_passes
from hpcq.evaluate.prefix.radix_tree import TokenRequest

_EXAMPLES = "Question: What do clouds let fall?\nAnswer: rain\n\nQuestion: What do cows give?\nAnswer: milk\n\n"
_CHOICES = (" ice", " milk", " ice cream", " ice cubes, of course", " water and salt")
SELF_CHECK = tuple(
    (f"{_EXAMPLES}Question: {question}\nAnswer:", choice)
    for question in ("What is made of cold water?", "What do we drink?")
    for choice in _CHOICES
)
"""Contexts and continuations like those of tasks: nested prefixes, choices of one token, choices with a common
beginning."""

_BATCH_ROWS = 2
_MAX_BATCH_TOKENS = 8_192

Reference = Callable[[Sequence[TokenRequest], int], Sequence[float]]
"""Computes log-likelihoods of whole requests, in batches of a given size."""


def compare(engine: Engine, requests: Sequence[TokenRequest], reference: Reference, budget: Budget) -> Agreement:
    """Compute `requests` from shared prefixes, one by one, and in batches.

    Args:
        engine: The engine.
        requests: The requests.
        reference: Computes whole requests.
        budget: The engine's limits.

    Returns:
        The largest differences, in nats.
    """
    # With a low overhead per pass, even short prefixes are shared.
    plan = plan_passes(requests, replace(budget, pass_overhead_tokens=4))
    found = {scored.request: scored.loglikelihood for scored in engine.score(plan)}
    shared = [found[number] for number in range(len(requests))]
    longest = max(request.input_length for request in requests)
    rows = _BATCH_ROWS if _BATCH_ROWS * longest <= _MAX_BATCH_TOKENS else 1
    alone, batched = (reference(requests, size) for size in (1, rows))
    return Agreement(difference=largest_difference(shared, alone), batch_difference=largest_difference(batched, alone))


def last_tokens_read(request: TokenRequest) -> TokenRequest:
    """Return the same text with a continuation of at most its last MAX_READ_TOKENS tokens."""
    return TokenRequest(tokens=request.tokens, continuation_length=min(request.continuation_length, MAX_READ_TOKENS))


def whole_requests(forward: Forward, softmax_dtype: torch.dtype | None) -> Reference:
    """Return a computation of whole requests like HFLM's, with logits only where they are read.

    HFLM's own logits of a long request would fill the memory.
    """

    def compute(requests: Sequence[TokenRequest], batch_size: int) -> list[float]:
        return [
            value
            for begin in range(0, len(requests), batch_size)
            for value in _one_batch(forward, softmax_dtype, requests[begin : begin + batch_size])
        ]

    return compute


def _one_batch(
    forward: Forward, softmax_dtype: torch.dtype | None, requests: Sequence[TokenRequest]
) -> Sequence[float]:
    width = max(request.input_length for request in requests)
    tokens = np.zeros((len(requests), width), np.int64)
    places, targets = [], []
    for row, request in enumerate(requests):
        tokens[row, : request.input_length] = request.tokens[:-1]
        end = row * width + request.input_length
        places.append(np.arange(end - request.continuation_length, end))
        targets.append(request.tokens[-request.continuation_length :].astype(np.int64))
    logits = forward(tokens, np.concatenate(places), positions=tokens, mask=None, cache=None)
    logprobs, _ = gather_logprobs(logits, np.arange(len(logits)), np.concatenate(targets), softmax_dtype)
    return [float(part.sum()) for part in logprobs.split([len(place) for place in places])]
