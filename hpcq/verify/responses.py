"""Verification of responses: before one is committed, and in counts over all stored responses to a task."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from hpcq.core.errors import UserInputError
from hpcq.store import RequestKey, Response, ResponseKind
from hpcq.store.response_columns import Columns
from hpcq.store.top_logprobs import unpack
from hpcq.verify.marks import MIN_EQUAL_TEXTS, TaskFacts

MAX_LOGLIKELIHOOD = 0.01
"""Largest valid log-likelihood, in nats. Because of rounding, the logarithm of a probability of one can exceed zero."""


class NotFiniteError(UserInputError):
    """A request has no response, because the model computed NaN or infinity for it."""


def response_problem(response: Response) -> str | None:
    """Return why `response` cannot come from a working model, as a clause; None: it can.

    A log-likelihood of minus infinity is a problem, too. The log-softmax of finite logits is finite, so minus infinity
    comes from an overflow, or from a token whose logit the model sets to minus infinity. No benchmark's text contains
    such a token.
    """
    value = response.loglikelihood
    if value is not None and not -math.inf < value <= MAX_LOGLIKELIHOOD:
        return f"its log-likelihood is {value:g}"
    if response.logprobs is None:
        return None
    top = unpack(response.logprobs).top_logprobs
    invalid = top[~(np.isfinite(top) & (top <= MAX_LOGLIKELIHOOD))]
    return f"the log-probability of one of its most probable tokens is {invalid[0]:g}" if len(invalid) else None


def not_finite_error(
    key: RequestKey, problem: str, *, model: str, dtype: str, origin: str | None = None
) -> NotFiniteError:
    """Return the error of a request without a response.

    Args:
        key: The request.
        problem: What was found: 'its log-likelihood is nan'.
        model: Path of the checkpoint.
        dtype: Data type in which it is computed.
        origin: The first layer whose output is not finite, as a clause; None if it is unknown.
    """
    fix = (
        'float16 has no number above 65504: set evaluate.dtype = "bfloat16", or "float32".'
        if dtype == "float16"
        else "Check the weights of the checkpoint."
    )
    return NotFiniteError(
        f"{model} has no response to {key.task} document {key.doc_id} request {key.request_index}: {problem}"
        f"{f' ({origin})' if origin else ''}. {fix}"
    )


def count_responses(columns: Columns) -> TaskFacts:
    """Return the counts of the stored responses to one task."""
    is_text = columns.kind == ResponseKind.GENERATE_UNTIL
    values = columns.loglikelihood[~is_text]
    texts = [text for text, generated in zip(columns.texts(), is_text.tolist(), strict=True) if generated]
    return TaskFacts(
        responses=len(columns),
        not_finite=int(np.count_nonzero(~(np.isfinite(values) & (values <= MAX_LOGLIKELIHOOD)))),
        cut_prompts=int(np.count_nonzero(columns.cut_tokens > 0)),
        max_cut_tokens=max(0, int(columns.cut_tokens.max(initial=0))),
        unknown_prompts=int(np.count_nonzero(columns.cut_tokens < 0)),
        texts=len(texts),
        empty_texts=sum(not text.strip() for text in texts),
        equal_texts=len(texts) if len(texts) >= MIN_EQUAL_TEXTS and len(set(texts)) == 1 and texts[0].strip() else 0,
    )


def add_counts(counts: Iterable[TaskFacts]) -> TaskFacts:
    """Return the counts of a group of tasks."""
    members = list(counts)
    total = {name: sum(getattr(one, name) for one in members) for name in TaskFacts.__dataclass_fields__}
    return TaskFacts(**total | {"max_cut_tokens": max((one.max_cut_tokens for one in members), default=0)})
