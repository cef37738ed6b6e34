"""Announcements of the end, noticed by a thread: at once, also while the main thread is inside a long computation.

Knows signals and threads. What follows from an announcement is its caller's.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

ANNOUNCEMENTS = (signal.SIGTERM, signal.SIGUSR2)
PARENT_INTERVAL_S = 5.0
_THE_END = 0
"""Among the numbers of signals, which begin at 1."""


def ignore_announcements() -> None:
    """Until somebody listens: submitit (1.5.4) would make the end of a job that never began of a USR2."""
    for number in ANNOUNCEMENTS:
        signal.signal(number, signal.SIG_IGN)


class Notices:
    """In the `with` block each SIGTERM and SIGUSR2 has `act` called with it, one after the other, in a thread.

    The kernel's signal reaches Python's C code at once, which writes its number to a pipe (signal.set_wakeup_fd);
    Python's own handlers run only when the main thread comes back to the interpreter.

    Args:
        act: called with the signal; with None where the parent process has died.
        leaves: SIGTERM also ends the main thread, by SystemExit. If not, the process lives on until it is killed, also
            after the block: nothing that comes from outside may change how it exits.
    """

    def __init__(self, act: Callable[[signal.Signals | None], None], *, leaves: bool) -> None:
        self._act = act
        self._leaves = leaves
        self._told = False
        self._parent = os.getppid()

    def __enter__(self) -> Self:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._handlers = {number: signal.signal(number, self._handle) for number in ANNOUNCEMENTS}
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="notices", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._leaves:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.write(self._writing, bytes([_THE_END]))
        self._thread.join()
        os.close(self._reading)
        os.close(self._writing)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGTERM and self._leaves and not self._told:
            self._told = True  # a second one must not break off what the first has made the unit commit
            raise SystemExit(128 + number)

    def _listen(self) -> None:
        while True:
            if not select.select([self._reading], [], [], PARENT_INTERVAL_S)[0]:
                self._look_for_parent()
                continue
            for number in os.read(self._reading, 1024):
                if number == _THE_END:
                    return
                if number in ANNOUNCEMENTS:
                    self._act(signal.Signals(number))

    def _look_for_parent(self) -> None:
        if os.getppid() != self._parent:
            self._parent = os.getppid()
            self._act(None)
