"""Signal listener in a thread: reacts at once, even if the main thread is in a long C call."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

TERMINATION_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
PARENT_CHECK_INTERVAL_S = 5.0
_END_OF_BLOCK = 0
"""Written to the pipe to stop the thread. Signal numbers start at 1."""


def ignore_termination_signals() -> None:
    """Ignore them until a listener starts: submitit (1.5.4) handles a SIGUSR2 before that by ending the job."""
    for number in TERMINATION_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class SignalListener:
    """Context manager: calls `on_signal` in a thread for each SIGTERM and SIGUSR2, one after the other.

    Python's C signal handler runs immediately and writes the signal's number to a pipe (signal.set_wakeup_fd). Handlers
    in Python run only when the main thread returns to the interpreter.

    Args:
        on_signal: Called with the signal; with None if the parent process has died.
        exit_on_sigterm: SIGTERM also raises SystemExit in the main thread. Otherwise the process ignores both signals,
            also after the block, so that they cannot change its exit code.
    """

    def __init__(self, on_signal: Callable[[signal.Signals | None], None], *, exit_on_sigterm: bool) -> None:
        self._on_signal = on_signal
        self._exit_on_sigterm = exit_on_sigterm
        self._has_received_sigterm = False
        self._parent = os.getppid()

    def __enter__(self) -> Self:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._handlers = {number: signal.signal(number, self._handle) for number in TERMINATION_SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signal-listener", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._exit_on_sigterm:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.write(self._writing, bytes([_END_OF_BLOCK]))
        self._thread.join()
        os.close(self._reading)
        os.close(self._writing)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGTERM and self._exit_on_sigterm and not self._has_received_sigterm:
            self._has_received_sigterm = True  # a second one must not interrupt the commit
            raise SystemExit(128 + number)

    def _listen(self) -> None:
        while True:
            if not select.select([self._reading], [], [], PARENT_CHECK_INTERVAL_S)[0]:
                self._check_parent()
                continue
            for number in os.read(self._reading, 1024):
                if number == _END_OF_BLOCK:
                    return
                if number in TERMINATION_SIGNALS:
                    self._on_signal(signal.Signals(number))

    def _check_parent(self) -> None:
        if os.getppid() != self._parent:
            self._parent = os.getppid()
            self._on_signal(None)
