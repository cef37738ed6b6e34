"""Failure classes of exceptions and exit codes."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from hpcq.core.errors import ManifestError, ProcessDiedError, SetupError, StorageError, UserInputError, WorkerError
from hpcq.core.failures import EXIT_CODES, Failure, classify_error, classify_exit_code, is_secondary


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's class; torch is not available to the tests of the core."""


def caused(error: BaseException, cause: BaseException) -> BaseException:
    """Return `error` as after `raise error from cause`."""
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
        (OSError(errno.EADDRINUSE, "Address already in use"), Failure.PORT_IN_USE),
        (ProcessDiedError("it ended", failure="killed", node="n1"), Failure.KILLED),
        (OSError(errno.ESTALE, "Stale file handle"), Failure.NODE_FAULT),
        (caused(StorageError("no"), OSError(errno.ESTALE, "Stale file handle")), Failure.NODE_FAULT),
        (caused(StorageError("no room"), OSError(errno.ENOSPC, "No space left")), Failure.FULL_DISK),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Failure.FULL_DISK),
        (StorageError("read-only"), Failure.FULL_DISK),
        (SetupError("no checkpoint"), Failure.MISSING_RESOURCE),
        (UserInputError("group size"), Failure.INVALID_INPUT),
        (ManifestError(["a", "b"]), Failure.INVALID_INPUT),
        (WorkerError("it left nothing"), Failure.BUG),
        (KeyError("x"), Failure.BUG),
        (caused(WorkerError("it ended"), MemoryError()), Failure.OUT_OF_MEMORY),
    ],
)
def test_classify_error(error: BaseException, failure: Failure) -> None:
    """An exception is classified by type, errno or text, its own or those of its causes."""
    assert classify_error(error) is failure


@pytest.mark.parametrize(
    "text",
    [
        "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:1234",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely",
    ],
)
def test_errors_about_a_lost_peer_are_secondary(text: str) -> None:
    """They do not state why the peer exited."""
    assert is_secondary(RuntimeError(text))


@pytest.mark.parametrize(
    "text",
    ["DistNetworkError: The server socket has failed to listen, name: EADDRINUSE", "CUDA out of memory. Tried to"],
)
def test_errors_of_the_process_itself_are_not_secondary(text: str) -> None:
    """A port in use is a primary reason, although torch's store reports it with the same exception."""
    assert not is_secondary(RuntimeError(text))


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
def test_the_handled_exception_counts_unless_it_is_suppressed(fail: Callable[[], None], failure: Failure) -> None:
    """`raise … from None` suppresses the exception that was being handled."""
    with pytest.raises(KeyError) as caught:
        fail()
    assert classify_error(caught.value) is failure


def test_exit_codes_map_back_to_their_class() -> None:
    """Each class that a worker can exit with has a distinct code, different from success and from signals."""
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)
    assert all(classify_exit_code(code) is failure for failure, code in EXIT_CODES.items())
    assert classify_exit_code(137) is Failure.KILLED
    assert [classify_exit_code(code) for code in (0, 1, 2, 143)] == [None] * 4
