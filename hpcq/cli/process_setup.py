"""What the process of a command does first: see that it can speak, and that it can be stopped.

Knows standard streams and signals. Knows no verb.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Heedless(io.FileIO):
    """Writes, and drops what nobody takes: telling of the work must never break it off."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Say that all was written, whether or not the reader is still there or the disk has room."""
        with contextlib.suppress(OSError):
            return super().write(data)
        return memoryview(data).nbytes


def enter() -> None:
    """Make the process fit to run a verb."""
    _open_streams()
    if threading.current_thread() is threading.main_thread():
        _hear_signals()


def leave() -> None:
    """Write what is left, or drop it: else Python tries again at its end, complains, and exits with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_streams() -> None:
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is None:  # closed by whoever started the command: `hpcq … >&-`
            # The lowest free number is the stream's own. Free, it would be the number of the next file that is opened.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003 (it takes no keyword)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_Heedless(2, "w", closefd=False)),
        encoding=sys.stderr.encoding if sys.stderr else "utf-8",
        errors="replace",
        line_buffering=True,
    )


def _hear_signals() -> None:
    """Let SIGTERM and SIGHUP stop the command in order, as Ctrl-C does.

    SIGINT, too, need not be heard otherwise: what a script starts in the background is born with it ignored. SIGHUP
    that is ignored stays so: that is what `nohup` is for.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
