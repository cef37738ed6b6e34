"""Classification of exceptions: the failure class that follows from type, error code and errno.

Libraries are not imported: their exceptions are recognized by the qualified names of their classes. A message is read
only where a library raises one type for many causes; then it must begin with a marker that the library writes, and the
table has the marker's source. An error that may have several causes is a BUG. A lost connection is CONNECTION_LOST,
which is retried, and never a NODE_FAULT, which would exclude a node for hours.
"""

from __future__ import annotations

import builtins
import errno
import re
from collections.abc import Iterator, Mapping
from enum import IntEnum
from http import HTTPStatus

from hpcq.core.errors import ConnectionLostError, HpcqError, ProcessDiedError, SetupError, StorageError, UserInputError
from hpcq.core.failures import Failure
from hpcq.core.frozen import dataclass


class CudaError(IntEnum):
    """Errors of the CUDA runtime that have one cause (NVIDIA, "CUDA Runtime API", cudaError).

    Left out, because they may have several causes: 3 (cudaErrorInitializationError; also after a fork), 700
    (cudaErrorIllegalAddress), 719 (cudaErrorLaunchFailure; also an invalid pointer in a kernel), 999
    (cudaErrorUnknown).
    """

    cudaErrorMemoryAllocation = 2  # noqa: N815 (NVIDIA's names)
    cudaErrorDevicesUnavailable = 46  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815
    cudaErrorECCUncorrectable = 214  # noqa: N815
    cudaErrorNvlinkUncorrectable = 220  # noqa: N815
    cudaErrorSystemNotReady = 802  # noqa: N815

    @property
    def failure(self) -> Failure:
        """Failure class of the error."""
        return Failure.OUT_OF_MEMORY if self is CudaError.cudaErrorMemoryAllocation else Failure.NODE_FAULT


_CUDA_TEXTS: Mapping[str, CudaError] = {
    "out of memory": CudaError.cudaErrorMemoryAllocation,
    "all CUDA-capable devices are busy or unavailable": CudaError.cudaErrorDevicesUnavailable,
    "CUDA-capable device(s) is/are busy or unavailable": CudaError.cudaErrorDevicesUnavailable,
    "no CUDA-capable device is detected": CudaError.cudaErrorNoDevice,
    "uncorrectable ECC error encountered": CudaError.cudaErrorECCUncorrectable,
    "uncorrectable NVLink error detected during the execution": CudaError.cudaErrorNvlinkUncorrectable,
    "system not yet initialized": CudaError.cudaErrorSystemNotReady,
}
"""Texts of cudaGetErrorString, for messages without the error's number."""

_ACCELERATOR_ERROR = "torch.AcceleratorError"
_FAILURE_BY_TYPE: Mapping[str, Failure] = {
    "builtins.MemoryError": Failure.OUT_OF_MEMORY,
    "numpy._core._exceptions._ArrayMemoryError": Failure.OUT_OF_MEMORY,  # as printed, without its base class
    "torch.OutOfMemoryError": Failure.OUT_OF_MEMORY,
    "torch.cuda.OutOfMemoryError": Failure.OUT_OF_MEMORY,  # before torch 2.5
    # nvidia-ml-py has one class per error code of NVML ("NVML API Reference", nvmlReturn_t); vLLM contains a copy.
    **{
        f"{module}.NVMLError_{name}": Failure.NODE_FAULT
        for module in ("pynvml", "vllm.third_party.pynvml")
        for name in (
            "CorruptedInforom",
            "DriverNotLoaded",
            "GpuIsLost",
            "IrqIssue",
            "LibRmVersionMismatch",
            "ResetRequired",
        )
    },
    # huggingface_hub: errors.py. A gated repository needs a user who asks for access.
    "huggingface_hub.errors.OfflineModeIsEnabled": Failure.MISSING_RESOURCE,
    "huggingface_hub.errors.GatedRepoError": Failure.MISSING_RESOURCE,
    "huggingface_hub.errors.DisabledRepoError": Failure.INVALID_INPUT,
    "huggingface_hub.errors.RepositoryNotFoundError": Failure.INVALID_INPUT,
    "huggingface_hub.errors.RevisionNotFoundError": Failure.INVALID_INPUT,
    "huggingface_hub.errors.RemoteEntryNotFoundError": Failure.INVALID_INPUT,
    "huggingface_hub.errors.HFValidationError": Failure.INVALID_INPUT,
}

_ABSENT_TYPES = ("huggingface_hub.errors.LocalEntryNotFoundError",)
"""A file is not in the cache. The cause, if there is one, is the reason why it could not be downloaded."""

_HTTP_ERROR_TYPES = ("huggingface_hub.errors.HfHubHTTPError", "httpx.HTTPStatusError", "httpx2.HTTPStatusError")
"""Exceptions with the attribute `response`. huggingface_hub uses httpx2 from version 2 on."""

_FAILURE_BY_HTTP_STATUS: Mapping[int, Failure] = {
    HTTPStatus.UNAUTHORIZED: Failure.MISSING_RESOURCE,
    HTTPStatus.FORBIDDEN: Failure.MISSING_RESOURCE,
    HTTPStatus.NOT_FOUND: Failure.INVALID_INPUT,
    HTTPStatus.REQUEST_TIMEOUT: Failure.CONNECTION_LOST,
    HTTPStatus.TOO_MANY_REQUESTS: Failure.CONNECTION_LOST,
}


@dataclass(frozen=True)
class _Marker:
    """Beginning of the messages that a library raises with `type_name` for one cause.

    Attributes:
        failure: None if the message only reports that another process has exited.
    """

    type_name: str
    pattern: str
    failure: Failure | None = None

    def matches(self, error: ErrorFacts) -> bool:
        return self.type_name in error.types and re.match(self.pattern, error.message, re.DOTALL) is not None


_CUDA_TEXT = "|".join(re.escape(text) for text in _CUDA_TEXTS)
_CUDA_MARKERS = (
    # torch: c10/cuda/CUDAException.cpp. Other libraries and torch before 2.8 raise a RuntimeError. The error code of an
    # AcceleratorError is not printed.
    *(
        (type_name, rf"CUDA error: (?P<text>{_CUDA_TEXT})(?:\n|$)")
        for type_name in (_ACCELERATOR_ERROR, "builtins.RuntimeError")
    ),
    # torch: C10D_NCCL_CHECK in torch/csrc/distributed/c10d/NCCLUtils.hpp; NCCL: CUDACHECK in src/include/checks.h.
    (
        "torch.distributed.DistBackendError",
        (
            r"NCCL error(?: in: [^\n]*?, |: )unhandled cuda error.*"
            rf"\nLast error:\nCuda failure (?:\d+ )?'(?P<text>{_CUDA_TEXT})'"
        ),
    ),
)
_MARKERS = (
    # torch: c10/core/impl/alloc_cpu.cpp.
    _Marker(
        "builtins.RuntimeError",
        r"\[enforce fail at [^\]\n]*alloc_cpu\.cpp:\d+\] [^\n]*DefaultCPUAllocator: can't allocate memory",
        Failure.OUT_OF_MEMORY,
    ),
    # torch: aten/src/ATen/MapAllocator.cpp, with the errno at the end of the line.
    _Marker(
        "builtins.RuntimeError",
        rf"unable to mmap \d+ bytes from file <[^\n]*>: [^\n]* \({errno.ENOMEM}\)$",
        Failure.OUT_OF_MEMORY,
    ),
    # libstdc++: std::bad_alloc::what(), which bindings of C++ raise as RuntimeError.
    _Marker("builtins.RuntimeError", r"std::bad_alloc$", Failure.OUT_OF_MEMORY),
    # torch: c10/cuda/CUDAFunctions.cpp; the driver works and reports no GPU.
    _Marker("builtins.RuntimeError", r"No CUDA GPUs are available", Failure.NODE_FAULT),
    # torch: torch/csrc/distributed/c10d/socket.cpp.
    _Marker(
        "torch.distributed.DistNetworkError",
        r"The server socket has failed to listen on any local network address\.[^\n]* name: EADDRINUSE,",
        Failure.PORT_IN_USE,
    ),
    # pyzmq: ZMQError begins with the text of its errno.
    _Marker("zmq.error.ZMQError", r"Address already in use", Failure.PORT_IN_USE),
)

_PEER_LOST_TYPES = (
    "builtins.BrokenPipeError",
    "builtins.ConnectionResetError",
    "torch.distributed.DistNetworkError",
    "torch.distributed.DistStoreError",
)
_PEER_LOST_MARKERS = (
    # gloo: Pair::read and Pair::write in gloo/transport/tcp/pair.cc.
    _Marker(
        "builtins.RuntimeError",
        r"\[(?:[^\]\n]*/)?gloo/transport/tcp/pair\.cc:\d+\] (?:Connection closed by peer|Read error|writev) ",
    ),
    # torch as above, and ProcessGroupNCCL.cpp without "in:"; NCCL: text of ncclRemoteError in src/init.cc.
    _Marker(
        "torch.distributed.DistBackendError",
        r"NCCL error(?: in: [^\n]*?, |: )remote process exited or there was a network error",
    ),
    # vLLM 0.32: distributed/device_communicators/pynccl_wrapper.py.
    _Marker("builtins.RuntimeError", r"NCCL error: remote process exited or there was a network error"),
)
_CONNECTION_TYPES = (
    *_PEER_LOST_TYPES,
    "builtins.ConnectionError",
    "httpx.TransportError",
    "httpx2.TransportError",
    "requests.exceptions.ConnectionError",
    "requests.exceptions.Timeout",
)
_CONNECTION_MARKERS = (
    *_PEER_LOST_MARKERS,
    # torch as above; NCCL: text of ncclSystemError in src/init.cc (sockets, InfiniBand, shared memory).
    _Marker("torch.distributed.DistBackendError", r"NCCL error(?: in: [^\n]*?, |: )unhandled system error"),
)
_NETWORK_ERRORS = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ETIMEDOUT)

_ENGINE_DIED_TYPES = ("vllm.v1.engine.exceptions.EngineDeadError",)
_ENGINE_DIED_MARKERS = (
    # vLLM 0.32: v1/engine/core.py, v1/engine/utils.py and v1/executor/multiproc_executor.py.
    _Marker("builtins.RuntimeError", r"Executor failed\."),
    _Marker("builtins.RuntimeError", r"Engine core initialization failed\."),
    _Marker("builtins.Exception", r"WorkerProc initialization failed due to an exception in a background process\."),
    # vLLM 0.32: distributed/device_communicators/shm_broadcast.py, when a queue is shut down while a process reads it.
    _Marker("builtins.RuntimeError", r"cancelled$"),
)

_FILE_SYSTEM_ERRORS: Mapping[int, Failure] = {
    errno.ENOSPC: Failure.FULL_DISK,
    errno.EDQUOT: Failure.FULL_DISK,
    errno.EIO: Failure.FULL_DISK,
    errno.EROFS: Failure.FULL_DISK,
    errno.ESTALE: Failure.NODE_FAULT,
    errno.ENOMEM: Failure.OUT_OF_MEMORY,
    errno.EADDRINUSE: Failure.PORT_IN_USE,
}
_UNAVAILABLE_MOUNT = (errno.ESTALE, errno.ENODEV, errno.ENOTCONN, errno.EHOSTDOWN)
"""File systems report a mount that is not available with these; all but the first are also errors of sockets and
devices, which name no file."""


@dataclass(frozen=True, kw_only=True)
class ErrorFacts:
    """An exception of this process, or one that another process has printed.

    Attributes:
        types: Qualified names of its class and of the base classes that are known.
        message: Text of the exception.
        errno: Error number of an OSError.
        names_file: Whether an OSError names a file.
        cuda_error: Error code of a torch.AcceleratorError.
        http_status: Status of the answer of an HTTP server.
    """

    types: tuple[str, ...]
    message: str
    errno: int | None = None
    names_file: bool = False
    cuda_error: int | None = None
    http_status: int | None = None

    @classmethod
    def from_exception(cls, error: BaseException) -> ErrorFacts:
        """Return the facts of an exception."""
        types = _qualified_names(type(error))
        return cls(
            types=types,
            message=str(error),
            errno=error.errno if isinstance(error, OSError) else None,
            names_file=isinstance(error, OSError) and error.filename is not None,
            cuda_error=getattr(error, "error_code", None) if _ACCELERATOR_ERROR in types else None,
            http_status=_http_status(error) if any(name in types for name in _HTTP_ERROR_TYPES) else None,
        )

    @classmethod
    def from_printed(cls, type_name: str, message: str) -> ErrorFacts:
        """Return the facts of an exception from its last line in a traceback, `<type_name>: <message>`."""
        known = getattr(builtins, type_name, None)
        if not (isinstance(known, type) and issubclass(known, BaseException)):
            return cls(types=(type_name,), message=message)
        # OSError.__str__ begins with its errno.
        number = re.match(r"\[Errno (\d+)\] ", message) if issubclass(known, OSError) else None
        return cls(types=_qualified_names(known), message=message, errno=int(number[1]) if number else None)

    @property
    def failure(self) -> Failure:
        """Failure class. Exceptions of hpcq have their own: `classify_error`."""
        return self._specific_failure() or (Failure.CONNECTION_LOST if self._is_lost_connection else Failure.BUG)

    def _specific_failure(self) -> Failure | None:
        if self.cuda_error in list(CudaError):
            return CudaError(self.cuda_error).failure
        by_type = next((_FAILURE_BY_TYPE[name] for name in self.types if name in _FAILURE_BY_TYPE), None)
        return by_type or self._failure_by_errno() or self._failure_by_status() or self._failure_by_marker()

    @property
    def _is_lost_connection(self) -> bool:
        is_network_error = self.errno in _NETWORK_ERRORS and not self.names_file
        return is_network_error or self._is_one_of(_CONNECTION_TYPES, _CONNECTION_MARKERS)

    def _failure_by_errno(self) -> Failure | None:
        if self.names_file and self.errno in _UNAVAILABLE_MOUNT:
            return Failure.NODE_FAULT
        return _FILE_SYSTEM_ERRORS.get(self.errno) if self.errno is not None else None

    def _failure_by_status(self) -> Failure | None:
        if self.http_status is None:
            return None
        is_server_error = self.http_status >= HTTPStatus.INTERNAL_SERVER_ERROR
        return Failure.CONNECTION_LOST if is_server_error else _FAILURE_BY_HTTP_STATUS.get(self.http_status)

    def _failure_by_marker(self) -> Failure | None:
        for type_name, pattern in _CUDA_MARKERS:
            found = re.match(pattern, self.message, re.DOTALL) if type_name in self.types else None
            if found:
                return _CUDA_TEXTS[found["text"]].failure
        return next((marker.failure for marker in _MARKERS if marker.matches(self)), None)

    @property
    def is_engine_death(self) -> bool:
        """Whether vLLM reports that a process of its engine has exited."""
        return self._is_one_of(_ENGINE_DIED_TYPES, _ENGINE_DIED_MARKERS)

    @property
    def is_secondary(self) -> bool:
        """Whether this only reports that another process has exited; the reason is in that process's error."""
        lost = self._is_one_of(_PEER_LOST_TYPES, _PEER_LOST_MARKERS) and self._specific_failure() is None
        return lost or self.is_engine_death

    def _is_one_of(self, types: tuple[str, ...], markers: tuple[_Marker, ...]) -> bool:
        return any(name in self.types for name in types) or any(marker.matches(self) for marker in markers)


def classify_error(error: BaseException) -> Failure:
    """Return the failure class of `error`: the first among it and its causes that is more specific than BUG."""
    found = next((one for cause in causes(error) if (one := _classify(cause)) is not Failure.BUG), Failure.BUG)
    is_absent = any(name in _ABSENT_TYPES for cause in causes(error) for name in _qualified_names(type(cause)))
    return Failure.MISSING_RESOURCE if found is Failure.BUG and is_absent else found


def is_secondary(error: BaseException) -> bool:
    """Return whether `error` only reports that another process has exited; the reason is in that process's error."""
    return error.is_secondary if isinstance(error, ProcessDiedError) else ErrorFacts.from_exception(error).is_secondary


def _classify(error: BaseException) -> Failure:
    if isinstance(error, ProcessDiedError):
        return Failure(error.failure)
    if isinstance(error, StorageError):
        number = next((cause.errno for cause in causes(error) if isinstance(cause, OSError)), None)
        return Failure.NODE_FAULT if number in _UNAVAILABLE_MOUNT else Failure.FULL_DISK
    if isinstance(error, ConnectionLostError):
        return Failure.CONNECTION_LOST
    if isinstance(error, SetupError):
        return Failure.MISSING_RESOURCE
    if isinstance(error, HpcqError):
        return Failure.INVALID_INPUT if isinstance(error, UserInputError) else Failure.BUG
    return ErrorFacts.from_exception(error).failure


def _qualified_names(error_type: type) -> tuple[str, ...]:
    return tuple(f"{one.__module__}.{one.__qualname__}" for one in error_type.__mro__)


def _http_status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and the exceptions that it was raised from or while handling."""
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in seen:
        seen.append(found)
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
