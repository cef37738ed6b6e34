"""Retries of requests to a server: which errors are transient, how long to wait, and when to give up.

Errors are classified by `hpcq.core.error_classification`: only a lost connection, an overloaded server (429) and an
error of the server (5xx) are transient.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import TypeVar

from hpcq.core.error_classification import ErrorFacts, causes, classify_error
from hpcq.core.failures import Failure
from hpcq.core.frozen import dataclass

RETRY_VARIABLE = "HPCQ_HUB_RETRY_S"
RETRY_S = 300.0
"""Time for all retries of one request, in seconds; RETRY_VARIABLE replaces it."""

UNREACHABLE_S = 15.0
"""Time for all retries of a request if no connection can be made, as on a machine without a network."""

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0
_JITTER = 0.25
"""Share of the wait that is random, so that workers that fail at the same time do not retry at the same time."""

_RESET = re.compile(r";\s*t\s*=\s*(\d+)")
"""Seconds until a limit is reset, in the header RateLimit (draft-ietf-httpapi-ratelimit-headers)."""

_NOT_CONNECTED = frozenset({"ConnectError", "ConnectTimeout", "ProxyError"})
_CUT = frozenset({"RemoteProtocolError", "ReadError", "WriteError", "CloseError"})

Result = TypeVar("Result")
Notify = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Time limits of the retries of one request, in seconds.

    Attributes:
        total_s: Limit if the server has responded, with an error or with a part of a file.
        unreachable_s: Limit if no connection to the server could be made.
    """

    total_s: float = RETRY_S
    unreachable_s: float = UNREACHABLE_S

    @classmethod
    def from_environment(cls) -> RetryPolicy:
        """Return the policy with the value of RETRY_VARIABLE, if it is a number."""
        try:
            total_s = float(os.environ[RETRY_VARIABLE])
        except (KeyError, ValueError):
            return cls()
        return cls(total_s=total_s, unreachable_s=min(total_s, UNREACHABLE_S))


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How to repeat a request.

    Attributes:
        policy: The time limits.
        notify: Called with one line before each wait.
        wait: Waits for a number of seconds; may raise an exception to end the retries.
    """

    policy: RetryPolicy
    notify: Notify
    wait: Callable[[float], object] = time.sleep

    def run(self, request: Callable[[], Result], errors: tuple[type[Exception], ...]) -> Result:
        """Return the result of `request`, which is repeated while it fails with a transient error.

        Args:
            request: Sends the request.
            errors: Types of the exceptions that are classified; all others pass.
        """
        begin_s = time.monotonic()
        for number, planned_s in enumerate(_waits(), start=1):
            try:
                return request()
            except errors as error:
                wait_s = max(planned_s, requested_wait_s(error) or 0.0)
                limit_s = self.policy.unreachable_s if is_unreachable(error) else self.policy.total_s
                if not is_transient(error) or time.monotonic() - begin_s + wait_s > limit_s:
                    raise
                self.notify(f"{describe(error)}; retry {number} in {wait_s:.0f} s")
            self.wait(wait_s)
        raise AssertionError("there is always a next wait")


def _waits() -> Iterator[float]:
    wait_s = FIRST_WAIT_S
    while True:
        yield wait_s * (1 + random.uniform(0, _JITTER))  # noqa: S311 (not secret)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed later."""
    return classify_error(error) is Failure.CONNECTION_LOST


def is_unreachable(error: BaseException) -> bool:
    """Return whether no connection to a server could be made."""
    return _has_type(error, _NOT_CONNECTED)


def _has_type(error: BaseException, names: frozenset[str]) -> bool:
    """Return whether `error` or one of its causes is an exception of httpx, or of its successor, with such a name."""
    found = (name for cause in causes(error) for name in ErrorFacts.from_exception(cause).types)
    return any(name.partition(".")[0] in ("httpx", "httpx2") and name.rpartition(".")[2] in names for name in found)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of the answer that caused the error; None: it was not an answer."""
    statuses = (ErrorFacts.from_exception(cause).http_status for cause in causes(error))
    return next((status for status in statuses if status is not None), None)


def requested_wait_s(error: BaseException) -> float | None:
    """Return how many seconds the server asks to wait (RFC 9110, Retry-After; or RateLimit)."""
    answers = (getattr(cause, "response", None) for cause in causes(error))
    headers: Mapping[str, str] = next((answer.headers for answer in answers if answer is not None), {})
    after = headers.get("Retry-After", "").strip()
    if after.isdigit():
        return float(after)
    if after and (date := _parse_date(after)) is not None:
        return max(0.0, date - time.time())
    reset = _RESET.search(headers.get("RateLimit", ""))
    return float(reset[1]) if reset and status_of(error) == HTTPStatus.TOO_MANY_REQUESTS else None


def _parse_date(text: str) -> float | None:
    from email.utils import parsedate_to_datetime  # here: the planner imports this module

    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None


def describe(error: BaseException) -> str:
    """Return what has failed in a few words, without the URL, which may contain credentials of a download."""
    status = status_of(error)
    if status is not None:
        return f"the hub answered with HTTP status {status}"
    if _has_type(error, _CUT):
        return "the connection was lost"
    return "the hub did not respond"
