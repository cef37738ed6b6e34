"""Calls that Ctrl-C ends at once, although name resolution and hf_xet return to Python only when they are done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def interruptible(call: Callable[[], Result]) -> Result:
    """Return the result of `call`. If this is the main thread, another thread executes the call.

    A signal handler in Python runs only when the main thread executes Python code. After an interrupt the call
    continues until it ends or the process exits.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    pool = ThreadPoolExecutor(1, thread_name_prefix="request")
    try:
        return pool.submit(call).result()
    finally:
        pool.shutdown(wait=False)
