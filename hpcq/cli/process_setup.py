"""Standard streams and signal handlers of the command's process, and tolerance of a closed pipe."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


_COLLECTION_THRESHOLD = 100_000
"""Objects between two garbage collections. Imports create as many objects, all of which stay in use. Collections during
imports took a tenth of the time of a short command."""


class _LossyStderr(io.FileIO):
    """Standard error that drops what cannot be written: a progress line must never stop the work."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write, and report success even if the reader is gone or the disk is full."""
        with contextlib.suppress(OSError):
            return super().write(data)
        return memoryview(data).nbytes


def use_one_thread() -> None:
    """Let numpy compute in one thread, if it is not imported yet and the user has not chosen.

    Threads of OpenBLAS wait for each other in a loop that uses the processor: with small matrices on a busy machine, a
    report took eight times as much CPU time.
    """
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def set_up() -> None:
    """Prepare the streams and signals of the process."""
    gc.set_threshold(_COLLECTION_THRESHOLD)
    _repair_streams()
    if threading.current_thread() is threading.main_thread():
        _install_signal_handlers()


def flush_stdout() -> None:
    """Write buffered output or drop it: otherwise Python fails to flush at exit, and its exit code is 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_at_once(code: int) -> NoReturn:
    """Exit without waiting for other threads: a download may wait for the hub until the client's read timeout.

    Flush the standard streams first.
    """
    os._exit(code)


def _repair_streams() -> None:
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is None:  # closed by the caller: `hpcq … >&-`
            # The lowest free descriptor is the one of this stream. Left free, the next opened file would get it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003 (it takes no keyword)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_LossyStderr(2, "w", closefd=False)),
        encoding=sys.stderr.encoding if sys.stderr else "utf-8",
        errors="replace",
        line_buffering=True,
    )


def _install_signal_handlers() -> None:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does.

    SIGINT is set, too: shells start background commands of a script with SIGINT ignored. A SIGHUP that is ignored stays
    ignored, because that is the purpose of `nohup`.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
