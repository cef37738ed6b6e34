"""Root cause of a dead vLLM engine (0.32), read from the log.

The engine runs in subprocesses. Their parent learns that one died, but not why. They write to the same standard error
as this process, so the reason is in its log.
"""

from __future__ import annotations

import os
import re
import signal
import stat
from pathlib import Path

from hpcq.core.errors import ProcessDiedError
from hpcq.core.failures import Failure, is_secondary

_STANDARD_ERROR = 2
_TAIL_BYTES = 2**18
# An exception as vLLM logs it, and as Python prints it when a process exits.
_RAISED = re.compile(
    r"^(?:\((?:EngineCore|Worker)[^)]*\) (?:ERROR [^\]]*\] )?)?([A-Za-z_][\w.]*(?:Error|Exception): .+)$", re.MULTILINE
)
_WORKER_DIED = re.compile(r"Worker proc (\S+) died unexpectedly \(exit code: (-?\d+)\)")
_CONSEQUENCE = re.compile(
    r"EngineDeadError|initialization failed|Executor failed|Worker failed with error|\bcancelled$"
)
"""Errors that follow from the death of another process."""


class RootCause:
    """If the engine dies in the `with` block, raise the error of the engine's process instead of its consequence.

    The retry policy depends on it: out of memory is retried with a smaller batch, a node fault on another node.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, Exception) or not _is_engine_death(error):
            return
        log = _log_tail()
        raised = [line for line in _RAISED.findall(log) if not _CONSEQUENCE.search(line)]
        # Prefer a primary error to one that reports a lost peer.
        raised = [line for line in raised if not is_secondary(RuntimeError(line))] or raised
        if raised:
            kind, _, text = raised[-1].partition(": ")
            if kind == "ValueError":
                raise ValueError(text) from error
            raise RuntimeError(f"vLLM's engine failed with {raised[-1]}") from error
        for name, code in _WORKER_DIED.findall(log)[-1:]:
            raise process_died(name, int(code)) from error


def process_died(name: str, code: int | None) -> ProcessDiedError:
    """Return the error for a worker with exit code `code`; a negative code is a signal's number."""
    if code is None or code >= 0:
        return ProcessDiedError(f"vLLM's process {name} exited with code {code}.", failure=Failure.BUG)
    signal_name = signal.Signals(-code).name
    return ProcessDiedError(f"vLLM's process {name} was killed by {signal_name}.", failure=Failure.KILLED)


def _is_engine_death(error: Exception) -> bool:
    return isinstance(error, ProcessDiedError) or _CONSEQUENCE.search(f"{type(error).__name__}: {error}") is not None


def _log_tail() -> str:
    """Return the last output of this process and its children; empty if standard error is not a file."""
    if not stat.S_ISREG(os.fstat(_STANDARD_ERROR).st_mode):
        return ""
    with Path(f"/proc/self/fd/{_STANDARD_ERROR}").open("rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL_BYTES))
        return log.read().decode(errors="replace")
