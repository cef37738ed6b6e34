"""Enum of the failure classes of attempts, and the exit code of each class.

`hpcq.core.error_classification` classifies exceptions. What happens after a failure is decided in
`hpcq.launch.recovery.retry_policy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Failure(StrEnum):
    """Class of a failure.

    Attributes:
        PREEMPTED: The scheduler took the node or requeued the job.
        TIMEOUT: The time limit was reached.
        NODE_FAULT: The node or its GPU failed, not the work.
        OUT_OF_MEMORY: The host or a GPU ran out of memory.
        KILLED: A signal without announcement and without another explanation.
        PORT_IN_USE: Another process on the node held a port that was needed.
        CONNECTION_LOST: A connection to another process or to a server failed, and no other error explains it.
        FULL_DISK: No space, no quota, or the file system refuses to write.
        MISSING_RESOURCE: Something that the plan relied on is missing on this machine. A retry succeeds only after a
            user has provided it.
        INVALID_INPUT: The manifest, the model or the data are invalid.
        BUG: Anything else, and every error that may have several causes.
        UNKNOWN: A class of another version of hpcq.
    """

    PREEMPTED = "preempted"
    TIMEOUT = "timeout"
    NODE_FAULT = "node fault"
    OUT_OF_MEMORY = "out of memory"
    KILLED = "killed"
    PORT_IN_USE = "port in use"
    CONNECTION_LOST = "connection lost"
    FULL_DISK = "full disk"
    MISSING_RESOURCE = "missing resource"
    INVALID_INPUT = "invalid input"
    BUG = "bug"
    UNKNOWN = "unknown"


EXIT_CODES: Mapping[Failure, int] = {
    Failure.INVALID_INPUT: 65,
    Failure.MISSING_RESOURCE: 69,
    Failure.BUG: 70,
    Failure.OUT_OF_MEMORY: 71,
    Failure.NODE_FAULT: 72,
    Failure.FULL_DISK: 74,
    Failure.PORT_IN_USE: 75,
    Failure.CONNECTION_LOST: 76,
}
"""Exit codes of a worker: those of sysexits.h(3) where one fits (data, unavailable, software, os, os file, io,
temporary failure, protocol). The scheduler keeps an exit code even if no file could be written."""

UNSAFE_PERMISSIONS = 77
"""Exit code of sbatch/private.sh: other users can write a file that was to be executed; its owner has to chmod it."""

SIGKILLED, SIGTERMED = 128 + 9, 128 + 15
"""Exit codes that a shell and srun report for a process terminated by SIGKILL and by SIGTERM."""


def exit_code_for(failure: Failure) -> int:
    """Return the exit code of a worker whose unit failed with this class."""
    return EXIT_CODES.get(failure, SIGKILLED)


def classify_exit_code(code: int) -> Failure | None:
    """Return the failure class of an exit code; None for 0 and for codes that hpcq does not define."""
    if code == SIGKILLED:
        return Failure.KILLED
    if code == UNSAFE_PERMISSIONS:
        return Failure.MISSING_RESOURCE
    return next((failure for failure, known in EXIT_CODES.items() if known == code), None)
