"""Why an attempt ended before its work was done: the classes, what tells them, and the exit code of each.

Knows exceptions by name and text alone, so that no library need be imported to judge what it raised. What follows from
a class is decided in launch/retries.py.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum

from hpcq.core.errors import HpcqError, ProcessEnded, SetupError, StorageError, UserInputError


class Failure(StrEnum):
    """The class of an ending.

    preempted: the scheduler took the node, or requeued the job. timeout: the time limit. node fault: the node or its
    GPU, not the work. out of memory: of the host or of a GPU. killed: by a signal that nobody announced and that
    nothing explains. taken: another process of the node had what was needed, such as a port. full disk: no room, no
    quota, or the file system refuses. lacking: this machine lacks something that the plan counted on; another try
    succeeds only after somebody's cure. bad input: the manifest, the model or the data. bug: anything else.
    """

    PREEMPTED = "preempted"
    TIMEOUT = "timeout"
    NODE_FAULT = "node fault"
    OUT_OF_MEMORY = "out of memory"
    KILLED = "killed"
    TAKEN = "taken"
    FULL_DISK = "full disk"
    LACKING = "lacking"
    BAD_INPUT = "bad input"
    BUG = "bug"


EXIT_CODES: Mapping[Failure, int] = {
    Failure.BAD_INPUT: 65,
    Failure.LACKING: 69,
    Failure.BUG: 70,
    Failure.OUT_OF_MEMORY: 71,
    Failure.NODE_FAULT: 72,
    Failure.FULL_DISK: 74,
    Failure.TAKEN: 75,
}
"""What a worker leaves with: the numbers of sysexits.h(3) where it has one that fits (data, unavailable, software, os,
os file, io, temporary failure). A scheduler keeps an exit code even where no file could be written."""

EXPOSED = 77
"""What sbatch/private.sh leaves with: others can write what was to be executed, until its user says chmod."""

SIGKILLED, SIGTERMED = 128 + 9, 128 + 15
"""What a shell and srun report of a process that ended by SIGKILL, by SIGTERM."""

# Words that drivers and libraries use of a sick device, link or mount; matched in the text of what was raised. CUDA:
# the runtime's error strings; a GPU that has "fallen off the bus" is Xid 79 (NVIDIA, "Xid Errors").
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
_TAKEN = re.compile(r"EADDRINUSE|Address already in use", re.IGNORECASE)
# What gloo, torch's stores, NCCL and vLLM (0.32) say where a peer has ended.
_ECHO = re.compile(
    r"Connection (?:reset|closed) by peer|Broken pipe|DistNetworkError|DistStoreError|ncclRemoteError"
    r"|remote process exited|Executor failed|(?:WorkerProc|Engine core) initialization failed"
    r"|EngineCore encountered an issue|^cancelled$",
    re.IGNORECASE,
)
_SICK_MOUNT = (errno.ESTALE, errno.ENODEV, errno.ENOTCONN, errno.EHOSTDOWN)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def failure_of(error: BaseException) -> Failure:
    """The class of an attempt that ended with `error`: the first of it and its causes that tells more than a bug."""
    return next((found for cause in _causes(error) if (found := _judge(cause)) is not Failure.BUG), Failure.BUG)


def exit_code_of(failure: Failure) -> int:
    """What a worker whose unit ended so leaves with."""
    return EXIT_CODES.get(failure, SIGKILLED)


def is_echo(error: BaseException) -> bool:
    """Whether `error` says no more than that another process is not there any more: that one knows the reason."""
    return _ECHO.search(str(error)) is not None and not _TAKEN.search(str(error))


def failure_of_exit(code: int) -> Failure | None:
    """The class that an exit code tells; None where it tells none (0, or a code that is not ours)."""
    if code == SIGKILLED:
        return Failure.KILLED
    if code == EXPOSED:
        return Failure.LACKING
    return next((failure for failure, known in EXIT_CODES.items() if known == code), None)


def _judge(error: BaseException) -> Failure:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, HpcqError):
        return _judge_ours(error)
    if _TAKEN.search(text):
        return Failure.TAKEN
    if isinstance(error, OSError):
        return _judge_errno(error.errno, text)
    if any(kind.__name__ in _OUT_OF_MEMORY_KINDS for kind in type(error).__mro__) or _OUT_OF_MEMORY.search(text):
        return Failure.OUT_OF_MEMORY
    return Failure.NODE_FAULT if _NODE_FAULT.search(text) else Failure.BUG


def _judge_ours(error: HpcqError) -> Failure:
    if isinstance(error, ProcessEnded):
        return Failure(error.failure)
    if isinstance(error, StorageError):
        return _judge_errno(_errno_of(error), "") if _errno_of(error) in _SICK_MOUNT else Failure.FULL_DISK
    if isinstance(error, SetupError):
        return Failure.LACKING
    return Failure.BAD_INPUT if isinstance(error, UserInputError) else Failure.BUG


def _judge_errno(number: int | None, text: str) -> Failure:
    if number in _SICK_MOUNT or _NODE_FAULT.search(text):
        return Failure.NODE_FAULT
    if number in _FULL:
        return Failure.FULL_DISK
    return Failure.OUT_OF_MEMORY if number == errno.ENOMEM else Failure.BUG


def _errno_of(error: BaseException) -> int | None:
    return next((cause.errno for cause in _causes(error) if isinstance(cause, OSError)), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error`, and what it was raised from or while handling."""
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in seen:
        seen.append(found)
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
