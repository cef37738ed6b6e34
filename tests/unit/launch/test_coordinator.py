"""Coordinator of a unit's nodes, with followers on real sockets of this host, in the orders that races depend on."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.attempts import Attempt, AttemptRecord, new_attempt, utc_now
from hpcq.core.errors import ProcessDiedError
from hpcq.core.failures import Failure
from hpcq.launch.multinode import coordinator as module
from hpcq.launch.multinode.channel import Channel
from hpcq.launch.multinode.coordinator import Coordinator
from hpcq.launch.multinode.rendezvous import TIMEOUT_VARIABLE, RankInfo, connect

NODES = ("n0", "n1", "n2")
TIMEOUT_S = 30.0


@dataclass
class Unit:
    """A unit over three nodes, all of them this host."""

    folder: Path
    attempt: Attempt
    reported: list[Exception] = field(default_factory=list)

    def coordinator(self, on_failure: Callable[[Exception], None] | None = None) -> Coordinator:
        """Return the coordinator on rank 0."""
        return Coordinator(self.rank_info(0), self.attempt, on_failure or self.reported.append)

    def rank_info(self, rank: int) -> RankInfo:
        """Return the rank of a node."""
        return RankInfo(rank=rank, node=NODES[rank], nodes=NODES, folder=self.folder / "rendezvous")

    def join(self, rank: int) -> Channel:
        """Connect a follower, and return its channel once rank 0 has welcomed it."""
        channel, welcome = connect(self.rank_info(rank))
        assert welcome == {"attempt": 1}
        return channel

    def endpoint(self) -> dict[str, Any]:
        """Return where rank 0 listens, once it does."""
        path = self.folder / "rendezvous" / "endpoint.json"
        while not path.exists():
            time.sleep(0.01)
        return dict(json.loads(path.read_text()))


@pytest.fixture
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Unit:
    """A unit whose node has the address of the loopback interface; no wait for root causes."""
    monkeypatch.setattr(module, "node_address", lambda _: "127.0.0.1")
    monkeypatch.setattr(module, "ROOT_CAUSE_TIMEOUT_S", 0.0)
    monkeypatch.setenv(TIMEOUT_VARIABLE, str(TIMEOUT_S))
    record = AttemptRecord(unit="wide", attempt=0, job_id="1", node="n0", pid=1, start=utc_now())
    return Unit(folder=tmp_path, attempt=new_attempt(tmp_path / "attempts", record))


class Clock:
    """Stands for `time` in the coordinator: the second look at the clock is after the deadline.

    Attributes:
        at_deadline: Called before the clock shows a time after the deadline.
    """

    def __init__(self, at_deadline: Callable[[], object]) -> None:
        self._at_deadline = at_deadline
        self._looks = 0

    def monotonic(self) -> float:
        """Return 0 at first, then a time after the deadline."""
        self._looks += 1
        if self._looks == 1:
            return 0.0
        self._at_deadline()
        return 2 * TIMEOUT_S


def test_a_node_that_arrives_exactly_at_the_deadline_is_accepted(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    """All nodes register while rank 0 looks at the clock, and none is missing."""
    threads = ThreadPoolExecutor()
    joining: list[Future[Channel]] = []
    coordinator = unit.coordinator()
    accepted = threading.Event()

    def accept_two() -> None:
        # The main thread is reading the clock: accept the nodes as an earlier iteration of its loop would.
        [server] = servers
        joining.extend(threads.submit(unit.join, rank) for rank in (1, 2))
        for _ in joining:
            connection, _ = server.accept()
            threading.Thread(target=coordinator._serve, args=(Channel(connection),), daemon=True).start()
        for one in joining:
            one.result(TIMEOUT_S)
        accepted.set()

    servers: list[socket.socket] = []
    listen = module.listen

    def listening(address: str) -> socket.socket:
        servers.append(listen(address))
        servers[0].settimeout(TIMEOUT_S)
        return servers[0]

    monkeypatch.setattr(module, "listen", listening)
    monkeypatch.setattr(module, "time", Clock(accept_two))
    with coordinator:
        assert accepted.is_set()
    for one in joining:
        assert one.result().recv(TIMEOUT_S) == {"end": True}
        one.result().close()


def test_missing_nodes_are_named(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has a sentence for each, and the first is the faulty node."""
    monkeypatch.setattr(module, "time", Clock(lambda: None))
    with (
        pytest.raises(
            ProcessDiedError, match=r"^no process on n1 has reported; no process on n2 .* within 30 s\.$"
        ) as (caught),
        unit.coordinator(),
    ):
        pass
    assert (caught.value.failure, caught.value.node) == (Failure.NODE_FAULT, "n1")


def test_a_stranger_does_not_block_the_nodes(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two connections that send nothing, and are not refused before the test ends, are open while the nodes connect."""
    monkeypatch.setattr(module, "HANDSHAKE_TIMEOUT_S", 1e6)
    coordinator = unit.coordinator()
    with ThreadPoolExecutor() as threads:
        entering = threads.submit(coordinator.__enter__)
        endpoint = unit.endpoint()
        strangers = [socket.create_connection((endpoint["address"], endpoint["port"])) for _ in range(2)]
        challenges = [stranger.recv(1) for stranger in strangers]
        nodes = [unit.join(rank) for rank in (1, 2)]
        entering.result(TIMEOUT_S)
    assert len(b"".join(challenges)) == 2
    coordinator.__exit__(None, None, None)
    assert [node.recv(TIMEOUT_S) for node in nodes] == [{"end": True}] * 2
    for one in (*strangers, *nodes):
        one.close()


def test_a_node_that_registers_during_the_shutdown_is_turned_away(unit: Unit) -> None:
    """It has authenticated before and says who it is afterwards: no welcome, and a closed connection."""
    late: list[Channel] = []

    def authenticate() -> None:
        endpoint = unit.endpoint()
        channel = Channel(socket.create_connection((endpoint["address"], endpoint["port"])))
        assert channel.connect(endpoint["key"].encode(), TIMEOUT_S)
        late.append(channel)

    coordinator = unit.coordinator()
    with ThreadPoolExecutor() as threads:
        entering = threads.submit(coordinator.__enter__)
        authenticate()
        nodes = [unit.join(rank) for rank in (1, 2)]
        entering.result(TIMEOUT_S)
    coordinator.__exit__(None, None, None)
    late[0].send(rank=1, node="n1")
    assert late[0].recv(TIMEOUT_S) is None
    assert late[0].error is None
    assert coordinator._channels[1] is not None
    assert [node.recv(TIMEOUT_S) for node in nodes] == [{"end": True}] * 2
    assert unit.reported == []
    for channel in (*late, *nodes):
        channel.close()


def entered(unit: Unit, coordinator: Coordinator) -> list[Channel]:
    """Enter the coordinator's block with all nodes connected, and return their channels."""
    with ThreadPoolExecutor() as threads:
        entering = threads.submit(coordinator.__enter__)
        nodes = [unit.join(rank) for rank in (1, 2)]
        entering.result(TIMEOUT_S)
    return nodes


def test_the_block_ends_after_a_failure_has_been_reported(unit: Unit) -> None:
    """While one thread reports another node's failure, the main thread waits: the outcome is recorded once."""
    reporting, may_return = threading.Event(), threading.Event()
    order: list[str] = []

    def report(_error: Exception) -> None:
        reporting.set()
        assert may_return.wait(TIMEOUT_S)
        order.append("reported")

    coordinator = unit.coordinator(report)
    first, second = entered(unit, coordinator)
    first.send(reason="RuntimeError: no", failure="bug", is_secondary=False)
    assert reporting.wait(TIMEOUT_S)

    def leave() -> None:
        coordinator.__exit__(None, None, None)
        order.append("left")

    leaving = threading.Thread(target=leave)
    leaving.start()
    second.send(reason="RuntimeError: no", failure="bug", is_secondary=True)  # read while the first is reported
    leaving.join(0.5)  # never succeeds; a coordinator that does not wait has left by then
    may_return.set()
    leaving.join()
    assert order == ["reported", "left"]
    first.close()
    second.close()


@pytest.mark.parametrize("reports", [((1, True), (2, False)), ((2, False), (1, True))])
def test_the_root_cause_is_reported_and_not_its_consequence(
    unit: Unit, monkeypatch: pytest.MonkeyPatch, reports: tuple[tuple[int, bool], ...]
) -> None:
    """A node says whether its error is secondary; its message is not searched."""
    monkeypatch.setattr(module, "ROOT_CAUSE_TIMEOUT_S", TIMEOUT_S)
    coordinator = unit.coordinator()
    nodes = dict(zip((1, 2), entered(unit, coordinator), strict=True))
    for rank, is_secondary in reports:
        nodes[rank].send(reason="Connection reset by peer", failure="bug", is_secondary=is_secondary)
    error = RuntimeError("cancelled")
    with coordinator._condition:
        assert coordinator._condition.wait_for(lambda: len(coordinator._failures) == 2, TIMEOUT_S)
    monkeypatch.setattr(module, "ROOT_CAUSE_TIMEOUT_S", 0.0)
    with pytest.raises(ProcessDiedError, match=r"^n2: Connection reset by peer$"):
        coordinator.__exit__(RuntimeError, error, None)
    assert unit.reported == []
    for node in nodes.values():
        node.close()


def test_a_node_that_disconnects_without_a_report_is_named(unit: Unit) -> None:
    """Its class is 'killed', because its kernel closed the connection."""
    reported = threading.Event()

    def report(error: Exception) -> None:
        unit.reported.append(error)
        reported.set()

    coordinator = unit.coordinator(report)
    first, second = entered(unit, coordinator)
    second.close()
    assert reported.wait(TIMEOUT_S)
    coordinator.__exit__(None, None, None)
    [error] = unit.reported
    assert isinstance(error, ProcessDiedError)
    assert (error.failure, error.node) == (Failure.KILLED, "n2")
    assert str(error) == "n2: worker process exited without reporting a reason."
    first.close()
