"""The class of an ending, from what was raised and from exit codes."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from hpcq.core.errors import ManifestError, ProcessEnded, SetupError, StorageError, UserInputError, WorkFailed
from hpcq.core.failures import EXIT_CODES, Failure, failure_of, failure_of_exit, is_echo


class OutOfMemoryError(RuntimeError):
    """Named as torch's, which tests of the core must do without."""


def caused(error: BaseException, cause: BaseException) -> BaseException:
    """As `raise error from cause` leaves it."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (MemoryError(), Failure.OUT_OF_MEMORY),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), Failure.OUT_OF_MEMORY),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            Failure.OUT_OF_MEMORY,
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), Failure.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), Failure.NODE_FAULT),
        (
            RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:1275, ncclSystemError: System call failed"),
            Failure.NODE_FAULT,
        ),
        (RuntimeError("No CUDA GPUs are available: no CUDA-capable device is detected"), Failure.NODE_FAULT),
        (RuntimeError("Connection closed by peer [10.0.0.7]:1234"), Failure.NODE_FAULT),
        (OSError(errno.EADDRINUSE, "Address already in use"), Failure.TAKEN),
        (ProcessEnded("it ended", failure="killed", node="n1"), Failure.KILLED),
        (OSError(errno.ESTALE, "Stale file handle"), Failure.NODE_FAULT),
        (caused(StorageError("no"), OSError(errno.ESTALE, "Stale file handle")), Failure.NODE_FAULT),
        (caused(StorageError("no room"), OSError(errno.ENOSPC, "No space left")), Failure.FULL_DISK),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Failure.FULL_DISK),
        (StorageError("read-only"), Failure.FULL_DISK),
        (SetupError("no checkpoint"), Failure.LACKING),
        (UserInputError("group size"), Failure.BAD_INPUT),
        (ManifestError(["a", "b"]), Failure.BAD_INPUT),
        (WorkFailed("it left nothing"), Failure.BUG),
        (KeyError("x"), Failure.BUG),
        (caused(WorkFailed("it ended"), MemoryError()), Failure.OUT_OF_MEMORY),
    ],
)
def test_an_exception_tells_its_class(error: BaseException, failure: Failure) -> None:
    """By its kind, its errno, its text, or those of what caused it."""
    assert failure_of(error) is failure


@pytest.mark.parametrize(
    "text",
    [
        "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:1234",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely",
    ],
)
def test_losing_another_process_is_an_echo_of_its_end(text: str) -> None:
    """It says nothing of why that one left."""
    assert is_echo(RuntimeError(text))


@pytest.mark.parametrize(
    "text",
    ["DistNetworkError: The server socket has failed to listen, name: EADDRINUSE", "CUDA out of memory. Tried to"],
)
def test_what_ails_the_process_itself_is_no_echo(text: str) -> None:
    """A port that is taken is a reason of its own, although the store tells it by the same error."""
    assert not is_echo(RuntimeError(text))


def failing_while_handling() -> None:
    """A KeyError in the handler of a MemoryError."""
    try:
        bytes(2**62)
    except MemoryError:
        {}["while handling"]


def failing_instead() -> None:
    """A KeyError that replaces a MemoryError."""
    try:
        bytes(2**62)
    except MemoryError:
        raise KeyError("instead") from None


@pytest.mark.parametrize(
    ("fail", "failure"), [(failing_while_handling, Failure.OUT_OF_MEMORY), (failing_instead, Failure.BUG)]
)
def test_what_was_raised_while_handling_counts_unless_it_was_put_aside(
    fail: Callable[[], None], failure: Failure
) -> None:
    """`raise … from None` says that the first error does not matter."""
    with pytest.raises(KeyError) as caught:
        fail()
    assert failure_of(caught.value) is failure


def test_exit_codes_tell_the_class_again() -> None:
    """Each class that a worker can leave with has a code of its own, which no signal and no success has."""
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)
    assert all(failure_of_exit(code) is failure for failure, code in EXIT_CODES.items())
    assert failure_of_exit(137) is Failure.KILLED
    assert [failure_of_exit(code) for code in (0, 1, 2, 143)] == [None] * 4
