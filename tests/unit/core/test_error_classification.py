"""Failure classes of exceptions. Exceptions of libraries are real in tests/unit/evaluate/test_library_errors.py."""

from __future__ import annotations

import errno
import socket
import struct
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from threading import Thread

import httpx
import pytest
from huggingface_hub import errors

from hpcq.core.error_classification import CudaError, ErrorFacts, classify_error, is_secondary
from hpcq.core.errors import (
    ConnectionLostError,
    ManifestError,
    ProcessDiedError,
    SetupError,
    StorageError,
    UserInputError,
    WorkerError,
)
from hpcq.core.failures import Failure

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB"
ALLOCATION_FAILED = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    " 40000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
PORT_IN_USE = (
    "The server socket has failed to listen on any local network address. port: 46529, useIpv6: false, code: -98,"
    " name: EADDRINUSE, message: address already in use"
)
NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, "
NCCL_OUT_OF_MEMORY = (
    f"{NCCL}unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
)
NCCL_SYSTEM_ERROR = f"{NCCL}unhandled system error, NCCL version 2.27.5\nncclSystemError: System call failed."
NCCL_PEER_LOST = (
    f"{NCCL}remote process exited or there was a network error, NCCL version 2.27.5\nncclRemoteError: A call failed"
    " possibly due to a network error or a remote process exiting prematurely."
)
GLOO_PEER_LOST = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.7]:1234."
GLOO_TIMEOUT = "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 8000ms"


def library_error(name: str, message: str, **attributes: object) -> Exception:
    """An exception with the qualified class name `name`; the libraries are not available to the tests of the core."""
    module, _, kind = name.rpartition(".")
    error: Exception = type(kind, (RuntimeError,), {"__module__": module})(message)
    for attribute, value in attributes.items():
        setattr(error, attribute, value)
    return error


def caused(error: BaseException, cause: BaseException) -> BaseException:
    """Return `error` as after `raise error from cause`."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (MemoryError(), Failure.OUT_OF_MEMORY),
        (library_error("torch.OutOfMemoryError", OUT_OF_MEMORY), Failure.OUT_OF_MEMORY),
        (library_error("torch.AcceleratorError", "CUDA error", error_code=2), Failure.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), Failure.OUT_OF_MEMORY),
        (RuntimeError(ALLOCATION_FAILED), Failure.OUT_OF_MEMORY),
        (RuntimeError("std::bad_alloc"), Failure.OUT_OF_MEMORY),
        (RuntimeError("unable to mmap 8 bytes from file </a b>: Kein Speicher (12)"), Failure.OUT_OF_MEMORY),
        (library_error("torch.distributed.DistBackendError", NCCL_OUT_OF_MEMORY), Failure.OUT_OF_MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), Failure.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), Failure.NODE_FAULT),
        (library_error("torch.AcceleratorError", "CUDA error", error_code=214), Failure.NODE_FAULT),
        (RuntimeError("No CUDA GPUs are available"), Failure.NODE_FAULT),
        (library_error("pynvml.NVMLError_GpuIsLost", "GPU is lost"), Failure.NODE_FAULT),
        (OSError(errno.EADDRINUSE, "Address already in use"), Failure.PORT_IN_USE),
        (library_error("torch.distributed.DistNetworkError", PORT_IN_USE), Failure.PORT_IN_USE),
        (library_error("zmq.error.ZMQError", "Address already in use (addr='tcp://a:1')"), Failure.PORT_IN_USE),
        (ProcessDiedError("it ended", failure="killed", node="n1"), Failure.KILLED),
        (OSError(errno.ESTALE, "Stale file handle"), Failure.NODE_FAULT),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected", "/lustre/model"), Failure.NODE_FAULT),
        (caused(StorageError("no"), OSError(errno.ESTALE, "Stale file handle")), Failure.NODE_FAULT),
        (caused(StorageError("no"), OSError(errno.ENOTCONN, "Not connected")), Failure.NODE_FAULT),
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
    """An exception is classified by its type, error code, errno or marker, or those of its causes."""
    assert classify_error(error) is failure


@pytest.mark.parametrize(
    "error",
    [
        ValueError("chat template: 'out of memory' is not a valid role"),
        ValueError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("the model wrote: CUDA error: out of memory"),
        OSError(errno.ENOTCONN, "Transport endpoint is not connected"),
        library_error("torch.AcceleratorError", "CUDA error: unspecified launch failure", error_code=719),
        RuntimeError("CUDA error: out of memory bounds"),
        RuntimeError("the model wrote: Connection reset by peer"),
        library_error("pynvml.NVMLError_Unknown", "Unknown Error"),
    ],
)
def test_an_ambiguous_error_is_a_bug(error: Exception) -> None:
    """Words in a message blame neither a node nor the memory."""
    assert classify_error(error) is Failure.BUG


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        OSError(errno.EHOSTUNREACH, "No route to host"),
        library_error("requests.exceptions.ConnectionError", "('Connection aborted.', 'Connection reset by peer')"),
        library_error("httpx.TransportError", "[Errno 113] No route to host"),
        RuntimeError(GLOO_PEER_LOST),
        library_error("torch.distributed.DistBackendError", NCCL_PEER_LOST),
        library_error("torch.distributed.DistBackendError", NCCL_SYSTEM_ERROR),
        library_error("torch.distributed.DistStoreError", "Timed out after 31 seconds waiting for clients."),
    ],
)
def test_a_lost_connection_is_retried_and_blames_no_node(error: Exception) -> None:
    """Whether a peer, the network or a server is at fault cannot be known from one side."""
    assert classify_error(error) is Failure.CONNECTION_LOST


def hub_error(kind: type[errors.HfHubHTTPError], status: int) -> Exception:
    """An exception of huggingface_hub for an answer with this status."""
    return kind("failed", response=httpx.Response(status, request=httpx.Request("GET", "https://hub/x")))


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (hub_error(errors.HfHubHTTPError, 429), Failure.CONNECTION_LOST),
        (hub_error(errors.HfHubHTTPError, 408), Failure.CONNECTION_LOST),
        (hub_error(errors.HfHubHTTPError, 500), Failure.CONNECTION_LOST),
        (hub_error(errors.HfHubHTTPError, 504), Failure.CONNECTION_LOST),
        (hub_error(errors.HfHubHTTPError, 401), Failure.MISSING_RESOURCE),
        (hub_error(errors.HfHubHTTPError, 403), Failure.MISSING_RESOURCE),
        (hub_error(errors.HfHubHTTPError, 418), Failure.BUG),
        (hub_error(errors.GatedRepoError, 401), Failure.MISSING_RESOURCE),
        (hub_error(errors.GatedRepoError, 403), Failure.MISSING_RESOURCE),
        (hub_error(errors.RepositoryNotFoundError, 401), Failure.INVALID_INPUT),
        (hub_error(errors.RevisionNotFoundError, 404), Failure.INVALID_INPUT),
        (hub_error(errors.RemoteEntryNotFoundError, 404), Failure.INVALID_INPUT),
        (hub_error(errors.DisabledRepoError, 403), Failure.INVALID_INPUT),
        (errors.HFValidationError("a b"), Failure.INVALID_INPUT),
        (httpx.RemoteProtocolError("peer closed connection without sending"), Failure.CONNECTION_LOST),
        (httpx.ConnectTimeout("timed out"), Failure.CONNECTION_LOST),
        (errors.OfflineModeIsEnabled("offline"), Failure.MISSING_RESOURCE),
        (errors.LocalEntryNotFoundError("not in the cache"), Failure.MISSING_RESOURCE),
        (caused(errors.LocalEntryNotFoundError("?"), httpx.ConnectError("refused")), Failure.CONNECTION_LOST),
        (caused(errors.LocalEntryNotFoundError("?"), hub_error(errors.HfHubHTTPError, 429)), Failure.CONNECTION_LOST),
        (caused(errors.LocalEntryNotFoundError("?"), errors.OfflineModeIsEnabled("?")), Failure.MISSING_RESOURCE),
        (caused(OSError("cannot load the model"), hub_error(errors.GatedRepoError, 403)), Failure.MISSING_RESOURCE),
        (ConnectionLostError("the hub does not respond"), Failure.CONNECTION_LOST),
    ],
)  # fmt: skip
def test_failures_of_the_hub(error: BaseException, failure: Failure) -> None:
    """Only what may succeed later is a lost connection; a file missing in the cache has the class of its cause."""
    assert classify_error(error) is failure


def test_a_reset_connection_of_an_http_client_is_a_lost_connection() -> None:
    """A real server that resets the connection does not make this node a faulty one."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def reset() -> None:
            connection, _ = server.accept()
            connection.recv(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        thread = Thread(target=reset)
        thread.start()
        with pytest.raises((OSError, HTTPException)) as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{server.getsockname()[1]}/", timeout=30)
        thread.join()
    assert "Connection reset by peer" in str(caught.value)
    assert classify_error(caught.value) is Failure.CONNECTION_LOST


def test_only_errors_of_cuda_with_one_cause_have_a_class() -> None:
    """Their numbers are those of cudaError."""
    assert {error.value: error.failure for error in CudaError} == {
        2: Failure.OUT_OF_MEMORY,
        **dict.fromkeys((46, 100, 214, 220, 802), Failure.NODE_FAULT),
    }


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(GLOO_PEER_LOST),
        RuntimeError(GLOO_PEER_LOST.replace("Connection closed by peer", "Read error")),
        RuntimeError("NCCL error: remote process exited or there was a network error"),
        library_error("torch.distributed.DistBackendError", NCCL_PEER_LOST),
        library_error("torch.distributed.DistBackendError", NCCL_PEER_LOST.replace(NCCL, "NCCL error: ")),
        library_error("torch.distributed.DistNetworkError", "Failed to recv, got 0 bytes."),
        library_error("torch.distributed.DistStoreError", "Timed out after 31 seconds waiting for clients."),
        library_error("vllm.v1.engine.exceptions.EngineDeadError", "EngineCore encountered an issue."),
        RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}"),
        RuntimeError("Executor failed."),
        RuntimeError("cancelled"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        ProcessDiedError("n2: Connection closed by peer", failure="bug", node="n2", is_secondary=True),
    ],
)
def test_errors_about_a_lost_peer_are_secondary(error: Exception) -> None:
    """They do not state why the peer exited."""
    assert is_secondary(error)


@pytest.mark.parametrize(
    "error",
    [
        library_error("torch.distributed.DistNetworkError", PORT_IN_USE),
        library_error("torch.OutOfMemoryError", OUT_OF_MEMORY),
        library_error("torch.distributed.DistBackendError", NCCL_OUT_OF_MEMORY),
        RuntimeError(GLOO_TIMEOUT),
        RuntimeError("the model wrote: Connection reset by peer"),
        ProcessDiedError("n2: Connection closed by peer", failure="bug", node="n2"),
    ],
)
def test_errors_of_the_process_itself_are_not_secondary(error: Exception) -> None:
    """A port in use is a primary reason, although torch's store reports it with the same exception."""
    assert not is_secondary(error)


@pytest.mark.parametrize(
    ("line", "failure"),
    [
        ("MemoryError: Cannot allocate memory (os error 12)", Failure.OUT_OF_MEMORY),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.45 GiB", Failure.OUT_OF_MEMORY),
        (f"torch.OutOfMemoryError: {OUT_OF_MEMORY}", Failure.OUT_OF_MEMORY),
        ("torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered", Failure.NODE_FAULT),
        ("OSError: [Errno 28] No space left on device: '/scratch/x'", Failure.FULL_DISK),
        ("ConnectionResetError: [Errno 104] Connection reset by peer", Failure.CONNECTION_LOST),
        (f"torch.distributed.DistNetworkError: {PORT_IN_USE}", Failure.PORT_IN_USE),
        ("ValueError: CUDA error: out of memory", Failure.BUG),
    ],
)
def test_an_error_that_another_process_printed_is_classified_like_a_raised_one(line: str, failure: Failure) -> None:
    """A traceback ends with the qualified name of the class and the message."""
    name, _, message = line.partition(": ")
    assert ErrorFacts.from_printed(name, message).failure is failure


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
