"""Watchdog in each vLLM worker process (0.32): exit if the engine's root process or the worker failed.

It is needed because vLLM's workers detect the death of their parent only after their set-up, and because an error on a
rank that returns no output leaves the other ranks waiting.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any, Self

from hpcq.core.processes import is_alive
from hpcq.evaluate.backends.vllm.reporter import Reporter

ROOT_VARIABLE = "HPCQ_ENGINE_ROOT"
"""Environment variable with the identity of the engine's root process; workers exit when it dies."""
EXTENSION = f"{__name__}.WorkerExtension"

_INTERVAL_S = 1.0
_REPLY_GRACE_S = 1.0
_FAILURE_MESSAGE = "WorkerProc hit an exception"


class WorkerExtension(Reporter):
    """Mixin that vLLM adds to its worker class (`worker_extension_cls`): each worker owns a watchdog.

    `__new__` starts it, because `WorkerBase.__init__` of vLLM does not call the `__init__` of its other base classes.
    vLLM creates the worker before it initializes the device, joins the process groups and loads the model.
    """

    hpcq_watchdog: Watchdog

    def __new__(cls, *_arguments: Any, **_settings: Any) -> Self:
        """Create the worker and start its watchdog."""
        worker = super().__new__(cls)
        worker.hpcq_watchdog = Watchdog(os.environ[ROOT_VARIABLE])
        worker.hpcq_watchdog.start()
        return worker


class Watchdog:
    """Thread and log handler that exit this process.

    Args:
        root: Identity of the process that this one must not outlive.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._exit_with_root, name="hpcq-watchdog", daemon=True)
        self._handler = _ExitOnFailure()

    def start(self) -> None:
        """Start to watch."""
        logging.getLogger("vllm").addHandler(self._handler)
        self._thread.start()

    def stop(self) -> None:
        """Stop to watch, and wait until the thread has ended."""
        logging.getLogger("vllm").removeHandler(self._handler)
        self._stopped.set()
        self._thread.join()

    def _exit_with_root(self) -> None:
        while is_alive(self._root):
            if self._stopped.wait(_INTERVAL_S):
                return
        os._exit(1)


class _ExitOnFailure(logging.Handler):
    """Exits the process after vLLM has logged a failure of the worker, with a delay for its reply."""

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith(_FAILURE_MESSAGE):
            threading.Timer(_REPLY_GRACE_S, os._exit, (1,)).start()
