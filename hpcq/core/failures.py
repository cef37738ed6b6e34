"""Failure classes of attempts: classification of exceptions and exit codes, and the exit code of each class.

Exceptions of libraries are classified by name and text, so that no library has to be imported for it. What happens
after a failure is decided in `hpcq.launch.recovery.retry_policy`.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum

from hpcq.core.errors import HpcqError, ProcessDiedError, SetupError, StorageError, UserInputError


class Failure(StrEnum):
    """Class of a failure.

    Attributes:
        PREEMPTED: The scheduler took the node or requeued the job.
        TIMEOUT: The time limit was reached.
        NODE_FAULT: The node or its GPU failed, not the work.
        OUT_OF_MEMORY: The host or a GPU ran out of memory.
        KILLED: A signal without announcement and without another explanation.
        PORT_IN_USE: Another process on the node held a port that was needed.
        FULL_DISK: No space, no quota, or the file system refuses to write.
        MISSING_RESOURCE: Something that the plan relied on is missing on this machine. A retry succeeds only after a
            user has provided it.
        INVALID_INPUT: The manifest, the model or the data are at fault.
        BUG: Anything else.
        UNKNOWN: A class of another version of hpcq.
    """

    PREEMPTED = "preempted"
    TIMEOUT = "timeout"
    NODE_FAULT = "node fault"
    OUT_OF_MEMORY = "out of memory"
    KILLED = "killed"
    PORT_IN_USE = "port in use"
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
}
"""Exit codes of a worker: those of sysexits.h(3) where one fits (data, unavailable, software, os, os file, io,
temporary failure). The scheduler keeps an exit code even if no file could be written."""

UNSAFE_PERMISSIONS = 77
"""Exit code of sbatch/private.sh: other users can write a file that was to be executed; its owner has to chmod it."""

SIGKILLED, SIGTERMED = 128 + 9, 128 + 15
"""Exit codes that a shell and srun report for a process terminated by SIGKILL and by SIGTERM."""

# How drivers and libraries report a faulty device, link or mount; matched in the text of exceptions. CUDA: the error
# strings of the runtime; a GPU that has "fallen off the bus" is Xid 79 (NVIDIA, "Xid Errors").
_NODE_FAULT = re.compile(
    r"uncorrectable ECC|fallen off the bus|device is lost|cudaErrorDevicesUnavailable|all CUDA-capable devices are busy"
    r"|no CUDA-capable device|CUDA driver initialization failed|unspecified launch failure|hardware error"
    r"|NVML: (?:Unknown|Driver)|GPU is lost|NCCL.*(?:unhandled|system|remote) error|ncclSystemError|ncclRemoteError"
    r"|ncclUnhandledCudaError|DistStoreError|DistNetworkError|Connection reset by peer|Connection closed by peer"
    r"|Transport endpoint is not connected|No route to host",
    re.IGNORECASE,
)
_OUT_OF_MEMORY = re.compile(r"out of memory|cannot allocate memory|can't allocate memory|bad_alloc", re.IGNORECASE)
_OUT_OF_MEMORY_KINDS = ("MemoryError", "OutOfMemoryError")
_PORT_IN_USE = re.compile(r"EADDRINUSE|Address already in use", re.IGNORECASE)
# How gloo, torch's stores, NCCL and vLLM (0.32) report that a peer has exited.
_PEER_LOST = re.compile(
    r"Connection (?:reset|closed) by peer|Broken pipe|DistNetworkError|DistStoreError|ncclRemoteError"
    r"|remote process exited|Executor failed|(?:WorkerProc|Engine core) initialization failed"
    r"|EngineCore encountered an issue|^cancelled$",
    re.IGNORECASE,
)
_UNAVAILABLE_MOUNT = (errno.ESTALE, errno.ENODEV, errno.ENOTCONN, errno.EHOSTDOWN)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def classify_error(error: BaseException) -> Failure:
    """Return the failure class of `error`: the first among it and its causes that is more specific than BUG."""
    return next((found for cause in _causes(error) if (found := _classify(cause)) is not Failure.BUG), Failure.BUG)


def exit_code_for(failure: Failure) -> int:
    """Return the exit code of a worker whose unit failed with this class."""
    return EXIT_CODES.get(failure, SIGKILLED)


def is_secondary(error: BaseException) -> bool:
    """Return whether `error` only reports that another process has exited; the reason is in that process's error."""
    return _PEER_LOST.search(str(error)) is not None and not _PORT_IN_USE.search(str(error))


def classify_exit_code(code: int) -> Failure | None:
    """Return the failure class of an exit code; None for 0 and for codes that hpcq does not define."""
    if code == SIGKILLED:
        return Failure.KILLED
    if code == UNSAFE_PERMISSIONS:
        return Failure.MISSING_RESOURCE
    return next((failure for failure, known in EXIT_CODES.items() if known == code), None)


def _classify(error: BaseException) -> Failure:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, HpcqError):
        return _classify_hpcq_error(error)
    if _PORT_IN_USE.search(text):
        return Failure.PORT_IN_USE
    if isinstance(error, OSError):
        return _classify_errno(error.errno, text)
    if any(kind.__name__ in _OUT_OF_MEMORY_KINDS for kind in type(error).__mro__) or _OUT_OF_MEMORY.search(text):
        return Failure.OUT_OF_MEMORY
    return Failure.NODE_FAULT if _NODE_FAULT.search(text) else Failure.BUG


def _classify_hpcq_error(error: HpcqError) -> Failure:
    if isinstance(error, ProcessDiedError):
        return Failure(error.failure)
    if isinstance(error, StorageError):
        return _classify_errno(_errno_of(error), "") if _errno_of(error) in _UNAVAILABLE_MOUNT else Failure.FULL_DISK
    if isinstance(error, SetupError):
        return Failure.MISSING_RESOURCE
    return Failure.INVALID_INPUT if isinstance(error, UserInputError) else Failure.BUG


def _classify_errno(number: int | None, text: str) -> Failure:
    if number in _UNAVAILABLE_MOUNT or _NODE_FAULT.search(text):
        return Failure.NODE_FAULT
    if number in _FULL:
        return Failure.FULL_DISK
    return Failure.OUT_OF_MEMORY if number == errno.ENOMEM else Failure.BUG


def _errno_of(error: BaseException) -> int | None:
    return next((cause.errno for cause in _causes(error) if isinstance(cause, OSError)), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and the exceptions that it was raised from or while handling."""
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in seen:
        seen.append(found)
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
