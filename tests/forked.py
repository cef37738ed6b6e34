"""Processes for tests to kill, forked from a server that has imported what takes seconds.

Not forked from the test's process: that has threads (tqdm's monitor is one), and a lock which one of them held at the
fork is held for ever in the child.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess

# One server serves a whole session of tests, with what it imported first. Where there is no torch it does without.
IMPORTED = ("hpcq.quantize.worker", "hpcq.quantize.synthetic", "hpcq.quantize.resumable_pipeline")


def started(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """A process that does `target`, and ends with this one at the latest."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process
