"""How a unit's process tells what it does: its output goes to a log of its own, an error becomes a sentence.

Knows file descriptors and errors. Must not know units.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from hpcq.core.errors import HpcqError

_REASON_CHARACTERS = 500


def sentence(error: Exception) -> str:
    """What a user is told of `error`."""
    text = str(error).strip()
    if isinstance(error, HpcqError):
        return text
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"[:_REASON_CHARACTERS]


@contextlib.contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Send file descriptors 1 and 2 to `log`, so that what libraries and child processes print goes there as well."""
    log.parent.mkdir(parents=True, exist_ok=True)
    kept = os.dup(1), os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    _redirect(target, target)
    os.close(target)
    try:
        yield
    finally:
        _redirect(*kept)
        for descriptor in kept:
            os.close(descriptor)


def leave(code: int) -> None:
    """End this process at once, whatever its other threads do; what it has printed is not lost."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _redirect(output: int, errors: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(output, 1)
    os.dup2(errors, 2)
