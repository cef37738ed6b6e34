"""What each of vLLM's worker processes is made to do (0.32): end when it is of no use any more.

Imported by vLLM in each worker, before that meets the others. Knows the process that began it all, and vLLM's log.

vLLM's workers notice their parent's death only once they are set up; and an error on a rank that answers nothing leaves
the others waiting for it.
"""

from __future__ import annotations

import logging
import os
import threading
import time

from hpcq.core.processes import is_alive

ROOT_VARIABLE = "HPCQ_ENGINE_ROOT"
"""Whose end is the workers': the identity of the process that started the engine, perhaps through another."""
EXTENSION = f"{__name__}.Mortal"

_INTERVAL_S = 1.0
_LAST_WORDS_S = 1.0
_FAILED = "WorkerProc hit an exception"


class Mortal:
    """What vLLM adds to its worker's class. Nothing: it is enough that this module is imported."""


class _EndOfWorker(logging.Handler):
    """Ends the process when vLLM has logged that work failed in it, and had the time to answer, if it does."""

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith(_FAILED):
            threading.Timer(_LAST_WORDS_S, os._exit, (1,)).start()


def _end_with(root: str) -> None:
    while is_alive(root):
        time.sleep(_INTERVAL_S)
    os._exit(1)


if root := os.environ.get(ROOT_VARIABLE):
    threading.Thread(target=_end_with, args=(root,), name="mortality", daemon=True).start()
    logging.getLogger("vllm").addHandler(_EndOfWorker())
