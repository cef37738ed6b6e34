"""Channel between two nodes, over real sockets of this host: authentication, messages, and how a connection ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import pytest

from hpcq.launch.multinode.channel import Channel

KEY, OTHER_KEY = b"key of the unit", b"another key"
TIMEOUT_S = 30.0


@contextlib.contextmanager
def connected() -> Iterator[tuple[Channel, socket.socket]]:
    """The channel of a server, and the socket of its peer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname())
        connection, _ = server.accept()
    channel = Channel(connection)
    try:
        yield channel, peer
    finally:
        channel.close()
        peer.close()


@pytest.mark.parametrize(("key", "is_accepted"), [(KEY, True), (OTHER_KEY, False)])
def test_only_a_peer_with_the_key_is_accepted(key: bytes, *, is_accepted: bool) -> None:
    """Both ends know the result, and the key is not sent."""
    with connected() as (server, peer), ThreadPoolExecutor() as threads:
        client = Channel(peer)
        accepted = threads.submit(server.accept, KEY, TIMEOUT_S)
        assert client.connect(key, TIMEOUT_S) is is_accepted
        assert accepted.result() is is_accepted
        client.close()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n\r\n", struct.pack("!i", 4) + b"what"])
def test_a_stranger_is_refused(sent: bytes) -> None:
    """One that sends nothing is refused after the timeout, one that sends anything else at once."""
    with connected() as (server, peer):
        peer.sendall(sent)
        assert server.accept(KEY, TIMEOUT_S if sent else 0.01) is False


def test_a_server_without_the_key_is_refused() -> None:
    """A follower does not take orders from another program on rank 0's port."""
    with connected() as (server, peer):
        client = Channel(peer)
        server.send(attempt=1)
        assert client.connect(KEY, TIMEOUT_S) is False
        client.close()


def test_messages_arrive_in_order_and_are_plain_data() -> None:
    """A message is a JSON object; anything else is not a message."""
    with connected() as (server, peer):
        client = Channel(peer)
        client.send(rank=1, node="n1")
        client.send(reason="é" * 5_000)
        assert server.recv(TIMEOUT_S) == {"rank": 1, "node": "n1"}
        assert server.recv(TIMEOUT_S) == {"reason": "é" * 5_000}
        client._connection.send_bytes(b"[1]")
        client._connection.send({"pickled": True})
        assert server.recv(TIMEOUT_S) is None
        assert server.recv(TIMEOUT_S) is None
        assert server.error is None
        client.close()


def test_a_message_that_is_too_long_is_an_error() -> None:
    """It is neither read nor kept."""
    with connected() as (server, peer):
        peer.sendall(struct.pack("!i", 2**30))
        assert server.recv(TIMEOUT_S) is None
        assert server.error is not None
        assert not server.is_unreachable


def send_and_wait(address: tuple[str, int]) -> None:
    """Connect, send a message, and wait to be killed."""
    channel = Channel(socket.create_connection(address))
    channel.send(pid=os.getpid())
    signal.pause()


def test_a_killed_peer_closes_its_connection() -> None:
    """Its kernel does so: the peer's node responds, its process does not."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = get_context("spawn").Process(target=send_and_wait, args=(server.getsockname(),))
        process.start()
        channel = Channel(server.accept()[0])
    assert channel.recv(TIMEOUT_S) == {"pid": process.pid}
    process.kill()
    assert channel.recv() is None
    assert not channel.is_unreachable
    process.join()
    channel.close()


def test_the_kernel_probes_a_silent_peer() -> None:
    """Keepalive and the limit of unacknowledged data are set, so that a dead node is detected within a minute."""
    with connected() as (server, _):
        with socket.socket(fileno=os.dup(server._connection.fileno())) as options:
            assert options.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert options.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 25_000
            idle, interval, count = (
                options.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
        assert idle + interval * count < 60
    server.error = TimeoutError(110, "Connection timed out")
    assert server.is_unreachable


def test_after_the_handshake_a_silent_peer_is_waited_for() -> None:
    """The handshake's timeout does not remain on the connection."""
    with connected() as (server, peer), ThreadPoolExecutor() as threads:
        assert server.recv(0.01) is None
        received = threads.submit(server.recv)
        Channel(peer).send(end=True)
        assert received.result(TIMEOUT_S) == {"end": True}
