"""Waits between retries, without a server."""

from __future__ import annotations

import email.utils
import time

import httpx
import pytest
from huggingface_hub import errors

from hpcq.stage.hub_client import _Contact
from hpcq.stage.retries import RETRY_VARIABLE, Retries, RetryPolicy, requested_wait_s


def hub_error(status: int = 429, **headers: str) -> errors.HfHubHTTPError:
    """An answer of the hub with these headers."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return errors.HfHubHTTPError(
        "x", response=httpx.Response(status, headers=fields, request=httpx.Request("GET", "x:"))
    )


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (hub_error(Retry_After="7"), 7),
        (hub_error(Retry_After="soon"), None),
        (hub_error(RateLimit='"api";r=0;t=55'), 55),
        (hub_error(500, RateLimit='"api";r=10;t=55'), None),
        (hub_error(503, Retry_After="3"), 3),
        (httpx.ConnectError("refused"), None),
    ],
)
def test_the_server_s_wait_is_read(error: Exception, seconds: float | None) -> None:
    """Retry-After in seconds, or the reset of a rate limit that is used up."""
    assert requested_wait_s(error) == seconds


@pytest.mark.parametrize(("offset_s", "seconds"), [(1000.0, 1000.0), (-1000.0, 0.0)])
def test_a_date_is_read(offset_s: float, seconds: float) -> None:
    """Retry-After may be a date; one in the past is no wait."""
    date = email.utils.formatdate(time.time() + offset_s, usegmt=True)
    assert requested_wait_s(hub_error(Retry_After=date)) == pytest.approx(seconds, abs=200)


def test_waits_grow_and_end() -> None:
    """Each wait is about twice the last one, up to a limit, and the last error is raised when the time is over."""
    waits: list[float] = []

    def fail() -> None:
        raise hub_error(503)

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 8:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        Retries(policy=RetryPolicy(total_s=1000), notify=lambda _: None, wait=wait).run(fail, (OSError,))
    assert all(low <= wait <= 1.25 * low for low, wait in zip((1, 2, 4, 8, 16, 30, 30, 30), waits, strict=True))
    with pytest.raises(errors.HfHubHTTPError):
        Retries(policy=RetryPolicy(total_s=0), notify=lambda _: None).run(fail, (OSError,))


def test_other_errors_pass_at_once() -> None:
    """An error that is not transient, or of another type, is not repeated."""
    retries = Retries(policy=RetryPolicy(), notify=pytest.fail, wait=pytest.fail)

    def fail(error: Exception) -> None:
        raise error

    for error in (hub_error(404), KeyError("x")):
        with pytest.raises(type(error)):
            retries.run(lambda error=error: fail(error), (OSError,))  # type: ignore[misc]


def test_a_missing_network_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed connection the next requests are not repeated; after an answer they are, for the whole time."""
    monkeypatch.setenv(RETRY_VARIABLE, "100")
    contact = _Contact()
    assert contact.policy() == RetryPolicy(total_s=100, unreachable_s=15)
    contact.failed()
    assert contact.policy().unreachable_s == 0
    contact.succeeded()
    assert contact.policy().unreachable_s == 100
    monkeypatch.setenv(RETRY_VARIABLE, "soon")
    assert RetryPolicy.from_environment() == RetryPolicy()
