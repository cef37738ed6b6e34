"""Failure classes of exceptions that torch, gloo and NVML really raise."""

from __future__ import annotations

import datetime
import os
import signal
import socket
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from hpcq.core.error_classification import ErrorFacts, classify_error, is_secondary
from hpcq.core.failures import Failure

torch = pytest.importorskip("torch")

TIMEOUT = datetime.timedelta(seconds=60)
MORE_THAN_ANY_HOST = 10**14


def test_a_failed_allocation_on_the_host_is_out_of_memory() -> None:
    """torch raises a RuntimeError that begins with the allocator's marker."""
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator") as caught:
        torch.empty(MORE_THAN_ANY_HOST)
    assert classify_error(caught.value) is Failure.OUT_OF_MEMORY
    message = str(caught.value)
    assert ErrorFacts.from_printed("RuntimeError", message).failure is Failure.OUT_OF_MEMORY
    assert ErrorFacts.from_printed("ValueError", message).failure is Failure.BUG


@pytest.mark.parametrize(
    ("code", "failure"), [(2, Failure.OUT_OF_MEMORY), (214, Failure.NODE_FAULT), (719, Failure.BUG)]
)
def test_an_accelerator_error_is_classified_by_its_code(code: int, failure: Failure) -> None:
    """torch's binding sets `error_code` on the exception; the text is not read."""
    error = torch.AcceleratorError("CUDA error: see the code")
    error.error_code = code
    assert classify_error(error) is failure


def test_a_port_in_use_is_not_a_lost_peer() -> None:
    """torch's store raises a DistNetworkError for both."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(torch.distributed.DistNetworkError) as caught:
            torch.distributed.TCPStore("127.0.0.1", port, 2, is_master=True, timeout=TIMEOUT)
    assert classify_error(caught.value) is Failure.PORT_IN_USE
    assert not is_secondary(caught.value)


def test_a_store_without_its_clients_has_lost_its_peers() -> None:
    """The DistStoreError states how many clients are missing, not why."""
    with pytest.raises(torch.distributed.DistStoreError) as caught:
        torch.distributed.TCPStore("127.0.0.1", 0, 2, is_master=True, timeout=datetime.timedelta(seconds=1))
    assert classify_error(caught.value) is Failure.BUG
    assert is_secondary(caught.value)


def run_rank(rank: int, store: str, killed: Connection) -> None:
    """Join a group of two ranks. Rank 1 is killed; rank 0 sends the facts of the error of its next collective."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=TIMEOUT)
    torch.distributed.all_reduce(torch.ones(1))
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        torch.distributed.all_reduce(torch.ones(1))
    except RuntimeError as error:
        killed.send((str(error), str(classify_error(error)), is_secondary(error)))


def test_a_killed_peer_is_a_secondary_error_of_gloo(tmp_path: Path) -> None:
    """The surviving rank's collective fails with gloo's RuntimeError, which blames no node."""
    context = get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    ranks = [context.Process(target=run_rank, args=(rank, f"file://{tmp_path}/store", sending)) for rank in range(2)]
    for process in ranks:
        process.start()
    sending.close()
    message, failure, secondary = receiving.recv()
    for process in ranks:
        process.join()
    assert "gloo/transport/tcp/pair.cc" in message
    assert (failure, secondary) == (Failure.BUG, True)


def test_errors_of_nvml_are_classified_by_their_type() -> None:
    """A lost GPU is a fault of the node; an unknown error, or a host without NVML, is not."""
    pynvml = pytest.importorskip("pynvml")
    assert classify_error(pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)) is Failure.NODE_FAULT
    for code in (pynvml.NVML_ERROR_UNKNOWN, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND):
        assert classify_error(pynvml.NVMLError(code)) is Failure.BUG
