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

from hpcq.core.error_classification import ErrorFacts
from hpcq.core.errors import ProcessDiedError, WorkerError
from hpcq.core.failures import Failure

_STANDARD_ERROR = 2
_TAIL_BYTES = 2**18
# An exception as vLLM logs it, and as Python prints it when a process exits.
_RAISED = re.compile(
    r"^(?:\((?:EngineCore|Worker)[^)]*\) (?:ERROR [^\]]*\] )?)?([A-Za-z_][\w.]*(?:Error|Exception)): (.+)$",
    re.MULTILINE,
)
_WORKER_DIED = re.compile(r"Worker proc (\S+) died unexpectedly \(exit code: (-?\d+)\)")
_RELAYED = "Worker failed with error '"
"""Beginning of the message of a RuntimeError that repeats a worker's error (v1/executor/multiproc_executor.py)."""


class RootCause:
    """If the engine dies in the `with` block, raise the error of the engine's process instead of its consequence.

    The retry policy depends on it: out of memory is retried with a smaller batch, a node fault on another node.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, Exception) or not _is_engine_death(error):
            return
        cause = _root_cause(_log_tail())
        if cause is not None:
            raise cause from error


def _root_cause(log: str) -> Exception | None:
    """Return the last error that the engine's processes printed, if possible not one that reports a lost peer."""
    printed = [(ErrorFacts.from_printed(*one), ": ".join(one)) for one in _RAISED.findall(log)]
    printed = [(facts, line) for facts, line in printed if not _is_consequence(facts)]
    primary = [(facts, line) for facts, line in printed if not facts.is_secondary]
    died = [process_died(name, int(code)) for name, code in _WORKER_DIED.findall(log)][-1:]
    if primary:
        return _printed_error(*primary[-1])
    if died and died[0].failure == Failure.KILLED:
        return died[0]
    return _printed_error(*printed[-1]) if printed else next(iter(died), None)


def _printed_error(facts: ErrorFacts, line: str) -> Exception:
    if facts.types[0] == "builtins.ValueError":
        return ValueError(facts.message)
    if facts.types[0] == f"{WorkerError.__module__}.{WorkerError.__qualname__}":
        return WorkerError(facts.message)
    return ProcessDiedError(f"vLLM's engine failed with {line}", failure=facts.failure, is_secondary=facts.is_secondary)


def process_died(name: str, code: int | None) -> ProcessDiedError:
    """Return the error for a worker with exit code `code`; a negative code is a signal's number."""
    if code is None or code >= 0:
        return ProcessDiedError(f"vLLM's process {name} exited with code {code}.", failure=Failure.BUG)
    signal_name = signal.Signals(-code).name
    return ProcessDiedError(f"vLLM's process {name} was killed by {signal_name}.", failure=Failure.KILLED)


def _is_engine_death(error: Exception) -> bool:
    return isinstance(error, ProcessDiedError) or _is_consequence(ErrorFacts.from_exception(error))


def _is_consequence(facts: ErrorFacts) -> bool:
    """Whether an error follows from the death of another process of the engine, or repeats its error."""
    return facts.is_engine_death or facts.message.startswith(_RELAYED)


def _log_tail() -> str:
    """Return the last output of this process and its children; empty if standard error is not a file."""
    if not stat.S_ISREG(os.fstat(_STANDARD_ERROR).st_mode):
        return ""
    with Path(f"/proc/self/fd/{_STANDARD_ERROR}").open("rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL_BYTES))
        return log.read().decode(errors="replace")
