"""Root cause of a dead engine: its unit fails for the reason of the engine's own process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from hpcq.core.error_classification import classify_error
from hpcq.core.errors import ProcessDiedError
from hpcq.core.failures import Failure
from hpcq.evaluate.backends.vllm.root_cause import RootCause

LOG = "(EngineCore pid=7) ERROR 11-23 07:45:22 [core.py:1510]"
OUT_OF_MEMORY = f"""\
{LOG} Traceback (most recent call last):
{LOG}     raise Worker
{LOG} torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
(EngineCore pid=7) INFO 11-23 07:45:28 [multiproc_executor.py:486] [shutdown] Executor: all workers exited gracefully
"""
TOO_LONG = "Process EngineCore:\n    raise ValueError(\nValueError: To serve at least one request with 8192 tokens\n"
PEER_LOST = (
    "(Worker_PP1 pid=8) ERROR 11-23 07:45:22 [multiproc_executor.py:1082] RuntimeError: "
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:33687.\n"
)
WORKER_KILLED = (
    "(EngineCore pid=7) ERROR 11-23 07:45:23 [multiproc_executor.py:341] Worker proc VllmWorker-0 died"
    " unexpectedly (exit code: -9), shutting down executor.\n"
)
NOT_STARTED = RuntimeError("Engine core initialization failed. See root cause above.")


@contextmanager
def printed(text: str, folder: Path) -> Iterator[None]:
    """Redirect standard error to a file with `text`, like the log of a unit."""
    path, saved = folder / "unit.log", os.dup(2)
    path.write_text(text, encoding="utf-8")
    with path.open("a") as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def test_an_engine_without_memory_fails_with_out_of_memory(tmp_path: Path) -> None:
    """The output of the engine's own process determines the failure class and the reason."""
    reason = r"failed with torch\.OutOfMemoryError: CUDA out of memory\."
    with pytest.raises(ProcessDiedError, match=reason) as raised, printed(OUT_OF_MEMORY, tmp_path), RootCause():
        raise EngineDeadError
    assert classify_error(raised.value) is Failure.OUT_OF_MEMORY


def test_an_engine_that_does_not_start_reports_the_invalid_setting(tmp_path: Path) -> None:
    """A setting that the engine's process rejects is reported as if the engine ran in this process."""
    reason = r"^To serve at least one request with 8192 tokens$"
    with pytest.raises(ValueError, match=reason), printed(TOO_LONG, tmp_path), RootCause():
        raise NOT_STARTED


@pytest.mark.parametrize(("text", "error"), [("", NOT_STARTED), (OUT_OF_MEMORY, RuntimeError("something else"))])
def test_an_error_without_a_root_cause_is_unchanged(tmp_path: Path, text: str, error: Exception) -> None:
    """If nothing was printed, or the engine did not die, the exception propagates unchanged."""
    with pytest.raises(RuntimeError) as raised, printed(text, tmp_path), RootCause():
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    ("log", "failure", "is_secondary"),
    [(PEER_LOST + WORKER_KILLED, Failure.KILLED, False), (PEER_LOST, Failure.CONNECTION_LOST, True)],
)
def test_a_killed_worker_is_the_reason_and_not_the_peer_that_lost_it(
    tmp_path: Path, log: str, failure: Failure, *, is_secondary: bool
) -> None:
    """The other workers' lost connections are the reason only if nothing else was printed, and are marked then."""
    with pytest.raises(ProcessDiedError) as raised, printed(log, tmp_path), RootCause():
        raise EngineDeadError
    assert (classify_error(raised.value), raised.value.is_secondary) == (failure, is_secondary)
