"""TCP channel between two nodes of a unit: authentication, JSON messages, and detection of a dead peer.

`multiprocessing.connection` authenticates both ends with HMAC and delimits messages. Its `Listener` and `Client` are
not used: `Listener.accept` authenticates one peer at a time without a timeout, so a stranger that sends nothing would
block the nodes, and `Client` has no timeout and no IPv6. Messages are JSON, so that nothing from the network is
unpickled.

When a process ends in any way, its kernel closes the connection. A dead node does not respond to TCP keepalive probes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

_KEEPALIVE_OPTIONS = {
    socket.TCP_KEEPIDLE: 10,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 25_000,
}
"""Seconds before the first probe and between probes, number of probes; milliseconds until unacknowledged data fail."""
_MAX_MESSAGE_BYTES = 2**16


class Channel:
    """One end of a connection. Any thread may send; one thread receives and closes.

    Attributes:
        error: Last error of the connection. None if the peer closed it, or while it is open.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(True)  # noqa: FBT003 (timeouts of Python's sockets do not apply to their descriptors)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE_OPTIONS.items():
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        self._connection = Connection(connection.detach())
        self._send_lock = threading.Lock()
        self.error: OSError | None = None

    @property
    def is_unreachable(self) -> bool:
        """Whether the peer's node, not only its process, has stopped responding."""
        return self.error is not None and self.error.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)

    def accept(self, key: bytes, timeout_s: float) -> bool:
        """Authenticate the peer that has connected; return whether it has the same key."""
        return self._authenticate(key, timeout_s, is_server=True)

    def connect(self, key: bytes, timeout_s: float) -> bool:
        """Authenticate the peer that this process has connected to; return whether it has the same key."""
        return self._authenticate(key, timeout_s, is_server=False)

    def _authenticate(self, key: bytes, timeout_s: float, *, is_server: bool) -> bool:
        steps = (deliver_challenge, answer_challenge) if is_server else (answer_challenge, deliver_challenge)
        with self._timeout(timeout_s):
            try:
                for step in steps:
                    step(self._connection, key)
            except OSError as error:
                self.error = error
            except (AuthenticationError, AssertionError, EOFError):  # Python 3.11 asserts the form of a challenge
                pass
            else:
                return True
        return False

    def send(self, **message: Any) -> None:
        """Send a message. A failed delivery does not raise: the thread that receives detects the dead peer."""
        with self._send_lock:
            try:
                self._connection.send_bytes(json.dumps(message).encode())
            except OSError as error:
                self.error = error

    def recv(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """Return the next message; None if the connection is closed or failed, or if the message is invalid."""
        with self._timeout(timeout_s):
            try:
                message = json.loads(self._connection.recv_bytes(_MAX_MESSAGE_BYTES))
            except OSError as error:
                self.error = error
                return None
            except (EOFError, ValueError):
                return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        """Close the connection."""
        with self._send_lock:
            self._connection.close()

    @contextlib.contextmanager
    def _timeout(self, timeout_s: float | None) -> Iterator[None]:
        """Limit the time of each read in the block, for `Connection` has no such limit; None: no limit."""
        self._set_read_timeout(timeout_s or 0.0)
        try:
            yield
        finally:
            self._set_read_timeout(0.0)

    def _set_read_timeout(self, timeout_s: float) -> None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as options:
            timeval = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))
            options.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
