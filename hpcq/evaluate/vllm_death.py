"""What vLLM's engine died of: on GPUs it is a process of its own, and its parent learns no more than that it died.

Knows vLLM's exceptions and log lines (0.32), and that its processes print where this one does. Must not know requests,
works or what becomes of a unit.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STANDARD_ERROR = 2
_TAIL_BYTES = 2**18
# As the engine's own log tells an exception, and as Python does when the process ends.
_RAISED = re.compile(
    r"^(?:\(EngineCore[^)]*\) ERROR [^\]]*\] )?([A-Za-z_][\w.]*(?:Error|Exception): .+)$", re.MULTILINE
)


@contextmanager
def root_cause() -> Iterator[None]:
    """Raise what the engine's process raised, where it died of something in the block.

    What becomes of the unit follows from it: less at once after it ran out of memory, another node after a fault.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except (EngineDeadError, RuntimeError) as error:
        raised = _RAISED.findall(_printed()) if _is_a_death(error) else []
        if not raised:
            raise
        kind, _, text = raised[-1].partition(": ")
        if kind == "ValueError":
            raise ValueError(text) from error
        raise RuntimeError(f"vLLM's engine died of {raised[-1]}") from error


def _is_a_death(error: Exception) -> bool:
    return type(error).__name__ == "EngineDeadError" or "Engine core initialization failed" in str(error)


def _printed() -> str:
    """The end of what this process and its children printed, where that goes to a file, as a unit's output does."""
    if not stat.S_ISREG(os.fstat(_STANDARD_ERROR).st_mode):
        return ""
    with Path(f"/proc/self/fd/{_STANDARD_ERROR}").open("rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL_BYTES))
        return log.read().decode(errors="replace")
