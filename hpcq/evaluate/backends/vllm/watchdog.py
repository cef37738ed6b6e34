"""Watchdog in each vLLM worker process (0.32): exit if the engine's root process or the worker failed.

vLLM imports this module in each worker before process group initialization (`worker_extension_cls`). It is needed
because vLLM's workers detect the death of their parent only after their set-up, and because an error on a rank that
returns no output leaves the other ranks waiting.
"""

from __future__ import annotations

import logging
import os
import threading
import time

from hpcq.core.processes import is_alive

ROOT_VARIABLE = "HPCQ_ENGINE_ROOT"
"""Environment variable with the identity of the engine's root process; workers exit when it dies."""
EXTENSION = f"{__name__}.WorkerExtension"

_INTERVAL_S = 1.0
_REPLY_GRACE_S = 1.0
_FAILURE_MESSAGE = "WorkerProc hit an exception"


class WorkerExtension:
    """Mixin that vLLM adds to its worker class. Empty: importing this module starts the watchdog."""


class _ExitOnFailure(logging.Handler):
    """Exits the process after vLLM has logged a failure of the worker, with a delay for its reply."""

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith(_FAILURE_MESSAGE):
            threading.Timer(_REPLY_GRACE_S, os._exit, (1,)).start()


def _exit_with_root(root: str) -> None:
    while is_alive(root):
        time.sleep(_INTERVAL_S)
    os._exit(1)


if root := os.environ.get(ROOT_VARIABLE):
    threading.Thread(target=_exit_with_root, args=(root,), name="watchdog", daemon=True).start()
    logging.getLogger("vllm").addHandler(_ExitOnFailure())
