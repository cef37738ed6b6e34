"""Processes for tests to kill, forked from a server that has already imported the slow modules.

They are not forked from the test's process: it has threads (such as tqdm's monitor), and a lock that a thread holds
during the fork stays locked in the child.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess

# One server lives for the whole test session, so its first use preloads all modules. Import errors (no torch) are
# ignored.
PRELOADED_MODULES = ("hpcq.quantize.worker", "hpcq.quantize.synthetic", "hpcq.quantize.resumable_pipeline")


def start_process(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start a process that runs `target`; it is terminated when this process exits."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED_MODULES))
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process
