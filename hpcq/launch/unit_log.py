"""Output of a unit's process: redirection to its own log, error messages, immediate exit."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from hpcq.core.errors import HpcqError

_MAX_MESSAGE_CHARACTERS = 500


def error_message(error: Exception) -> str:
    """Return the message of `error` for the user: one line, with the class name if it is not one of hpcq's errors."""
    text = str(error).strip()
    if isinstance(error, HpcqError):
        return text
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"[:_MAX_MESSAGE_CHARACTERS]


@contextlib.contextmanager
def redirect_output(log: Path) -> Iterator[None]:
    """Redirect file descriptors 1 and 2 to `log`, including the output of libraries and child processes."""
    log.parent.mkdir(parents=True, exist_ok=True)
    saved = os.dup(1), os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    _redirect(target, target)
    os.close(target)
    try:
        yield
    finally:
        _redirect(*saved)
        for descriptor in saved:
            os.close(descriptor)


def exit_now(code: int) -> None:
    """Exit immediately without waiting for other threads; buffered output is flushed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _redirect(output: int, errors: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(output, 1)
    os.dup2(errors, 2)
