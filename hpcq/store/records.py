"""What the store keeps: a request's key and its response.

Knows nothing of files, tasks or models. Both records are named tuples rather than dataclasses because a run holds
millions of them: a named tuple is made, hashed and compared about five times as fast.
"""

from __future__ import annotations

import hashlib
import json
from enum import IntEnum
from typing import NamedTuple

DIGEST_CHARACTERS = 32


class RequestKey(NamedTuple):
    """Names one request of an evaluation for ever: the same on every shard, attempt and node; ordered.

    `request_index` counts the requests of one document, `repeat` the times that one request is asked, `digest` is
    `digest_of_arguments` over what is asked.
    """

    task: str
    task_version: str
    doc_id: int
    request_index: int
    repeat: int
    digest: str


class ResponseKind(IntEnum):
    """Which question a response answers, in lm-eval's words; the numbers stand in files."""

    LOGLIKELIHOOD = 0
    LOGLIKELIHOOD_ROLLING = 1
    GENERATE_UNTIL = 2


class Response(NamedTuple):
    """An answer: (log-likelihood, greedy flag), or a rolling log-likelihood alone, or text alone; the rest is None."""

    loglikelihood: float | None = None
    is_greedy: bool | None = None
    text: str | None = None

    @property
    def kind(self) -> ResponseKind:
        """The question that this answers.

        Raises:
            ValueError: the fields together answer none.
        """
        match (self.loglikelihood is not None, self.is_greedy is not None, self.text is not None):
            case (True, True, False):
                return ResponseKind.LOGLIKELIHOOD
            case (True, False, False):
                return ResponseKind.LOGLIKELIHOOD_ROLLING
            case (False, False, True):
                return ResponseKind.GENERATE_UNTIL
        raise ValueError(f"{self!r} answers no kind of request: give a log-likelihood or a text, not both, not neither")


def digest_of_arguments(kind: str, arguments: object) -> str:
    """32 hexadecimal digits over a request's kind and its arguments, which must be plain JSON data.

    Raises:
        TypeError: an argument that JSON cannot say, such as a tensor.
    """
    text = json.dumps([kind, arguments], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARACTERS]
