"""Records of the store: the key of a request, and its response.

Both are named tuples rather than dataclasses because a run has millions of them: a named tuple is created, hashed and
compared about five times as fast.
"""

from __future__ import annotations

import hashlib
import json
from enum import IntEnum
from typing import NamedTuple

DIGEST_CHARACTERS = 32


class RequestKey(NamedTuple):
    """Stable name of one request of an evaluation: the same on every shard, attempt and node. Keys are ordered.

    Attributes:
        task: Name of the task.
        task_version: Version of the task's definition.
        doc_id: Index of the document in its data set.
        request_index: Index of the request among those of its document.
        repeat: Index of the repetition of the request.
        digest: `digest_of_arguments` of the request.
    """

    task: str
    task_version: str
    doc_id: int
    request_index: int
    repeat: int
    digest: str


class ResponseKind(IntEnum):
    """Kind of request that a response answers, in lm-eval's terms; the last is the fidelity panel's.

    The numbers are part of the file format.
    """

    LOGLIKELIHOOD = 0
    LOGLIKELIHOOD_ROLLING = 1
    GENERATE_UNTIL = 2
    TOP_LOGPROBS = 3


class Response(NamedTuple):
    """A response: log-likelihood and greedy flag, or only a rolling log-likelihood, or only text; the rest is None.

    A window of a fidelity panel has its log-likelihood and the log-probabilities of every position.

    Attributes:
        loglikelihood: Natural logarithm of the probability.
        is_greedy: Whether greedy decoding would produce the continuation.
        text: Generated text.
        cut_tokens: Tokens that were removed from the left of the prompt; None if that was not recorded.
        logprobs: A packed `hpcq.store.top_logprobs.TopLogprobs`.
    """

    loglikelihood: float | None = None
    is_greedy: bool | None = None
    text: str | None = None
    cut_tokens: int | None = None
    logprobs: bytes | None = None

    @property
    def kind(self) -> ResponseKind:
        """Kind of request that this answers.

        Raises:
            ValueError: The combination of fields answers no kind of request.
        """
        found = (self.loglikelihood is not None, self.is_greedy is not None, self.text is not None)
        match (*found, self.logprobs is not None):
            case (True, True, False, False):
                return ResponseKind.LOGLIKELIHOOD
            case (True, False, False, False):
                return ResponseKind.LOGLIKELIHOOD_ROLLING
            case (False, False, True, False):
                return ResponseKind.GENERATE_UNTIL
            case (True, False, False, True):
                return ResponseKind.TOP_LOGPROBS
        raise ValueError(f"{self!r} is not a valid response: give either a log-likelihood or a text")


def digest_of_arguments(kind: str, arguments: object) -> str:
    """Return 32 hexadecimal digits over a request's kind and its arguments, which must be plain JSON data.

    Raises:
        TypeError: An argument has no JSON form, such as a tensor.
    """
    text = json.dumps([kind, arguments], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARACTERS]
