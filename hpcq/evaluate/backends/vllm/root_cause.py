"""What vLLM's engine died of: it has processes of its own, and their parent learns no more than that one died.

Knows vLLM's exceptions and log lines (0.32), and that its processes print where this one does. Must not know requests,
works or what becomes of a unit.
"""

from __future__ import annotations

import os
import re
import signal
import stat
from pathlib import Path

from hpcq.core.errors import ProcessEnded
from hpcq.core.failures import Failure, is_echo

_STANDARD_ERROR = 2
_TAIL_BYTES = 2**18
# As a process's own log tells an exception, and as Python does when the process ends.
_RAISED = re.compile(
    r"^(?:\((?:EngineCore|Worker)[^)]*\) (?:ERROR [^\]]*\] )?)?([A-Za-z_][\w.]*(?:Error|Exception): .+)$", re.MULTILINE
)
_DIED = re.compile(r"Worker proc (\S+) died unexpectedly \(exit code: (-?\d+)\)")
_HOLLOW = re.compile(r"EngineDeadError|initialization failed|Executor failed|Worker failed with error|\bcancelled$")
"""What is raised because another process died."""


class RootCause:
    """Raise what the engine's processes raised, where one of them died of something in the `with` block.

    What becomes of the unit follows from it: less at once after it ran out of memory, another node after a fault.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, Exception) or not _is_a_death(error):
            return
        printed = _printed()
        raised = [line for line in _RAISED.findall(printed) if not _HOLLOW.search(line)]
        # One that says why comes before one that says that another has ended.
        raised = [line for line in raised if not is_echo(RuntimeError(line))] or raised
        if raised:
            kind, _, text = raised[-1].partition(": ")
            if kind == "ValueError":
                raise ValueError(text) from error
            raise RuntimeError(f"vLLM's engine died of {raised[-1]}") from error
        for name, code in _DIED.findall(printed)[-1:]:
            raise process_ended(name, int(code)) from error


def process_ended(name: str, code: int | None) -> ProcessEnded:
    """The error for a worker that ended with `code`, by a signal where that is negative."""
    if code is None or code >= 0:
        return ProcessEnded(f"vLLM's process {name} ended with exit code {code}.", failure=Failure.BUG)
    return ProcessEnded(f"vLLM's process {name} was ended by {signal.Signals(-code).name}.", failure=Failure.KILLED)


def _is_a_death(error: Exception) -> bool:
    return isinstance(error, ProcessEnded) or _HOLLOW.search(f"{type(error).__name__}: {error}") is not None


def _printed() -> str:
    """The end of what this process and its children printed, where that goes to a file, as a unit's output does."""
    if not stat.S_ISREG(os.fstat(_STANDARD_ERROR).st_mode):
        return ""
    with Path(f"/proc/self/fd/{_STANDARD_ERROR}").open("rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL_BYTES))
        return log.read().decode(errors="replace")
