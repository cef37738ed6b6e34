"""An engine that dies in a process of its own: its unit ends for the engine's reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from hpcq.core.failures import Failure, failure_of
from hpcq.evaluate.backends.vllm.root_cause import RootCause

LOG = "(EngineCore pid=7) ERROR 11-23 07:45:22 [core.py:1510]"
OUT_OF_MEMORY = f"""\
{LOG} Traceback (most recent call last):
{LOG}     raise Worker
{LOG} torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
(EngineCore pid=7) INFO 11-23 07:45:28 [multiproc_executor.py:486] [shutdown] Executor: all workers exited gracefully
"""
TOO_LONG = "Process EngineCore:\n    raise ValueError(\nValueError: To serve at least one request with 8192 tokens\n"
NOT_STARTED = RuntimeError("Engine core initialization failed. See root cause above.")


@contextmanager
def printed(text: str, folder: Path) -> Iterator[None]:
    """Standard error is a file, as a unit's log is, and `text` stands in it."""
    path, kept = folder / "unit.log", os.dup(2)
    path.write_text(text, encoding="utf-8")
    with path.open("a") as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def test_an_engine_that_ran_out_of_memory_makes_its_unit_smaller(tmp_path: Path) -> None:
    """What the engine's own process printed decides the class of the failure, and is its reason."""
    reason = r"died of torch\.OutOfMemoryError: CUDA out of memory\."
    with pytest.raises(RuntimeError, match=reason) as raised, printed(OUT_OF_MEMORY, tmp_path), RootCause():
        raise EngineDeadError
    assert failure_of(raised.value) is Failure.OUT_OF_MEMORY


def test_an_engine_that_does_not_start_says_what_does_not_fit(tmp_path: Path) -> None:
    """A setting that the engine's process refuses is told as if the engine had been started here."""
    reason = r"^To serve at least one request with 8192 tokens$"
    with pytest.raises(ValueError, match=reason), printed(TOO_LONG, tmp_path), RootCause():
        raise NOT_STARTED


@pytest.mark.parametrize(("text", "error"), [("", NOT_STARTED), (OUT_OF_MEMORY, RuntimeError("something else"))])
def test_what_is_not_explained_stays_as_it_was(tmp_path: Path, text: str, error: Exception) -> None:
    """Where nothing was printed, or the engine did not die, the exception goes on its way."""
    with pytest.raises(RuntimeError) as raised, printed(text, tmp_path), RootCause():
        raise error
    assert raised.value is error
