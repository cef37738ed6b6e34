"""TCP channel between two nodes of a unit: JSON messages, and detection of a dead peer.

When a process ends in any way, its kernel closes the connection. A dead node does not answer TCP keepalive probes.
"""

from __future__ import annotations

import errno
import json
import socket
from typing import Any

_KEEPALIVE_OPTIONS = {
    socket.TCP_KEEPIDLE: 10,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 25_000,
}
"""Seconds before the first probe and between probes, number of probes; milliseconds until unacknowledged data fail."""
_MAX_MESSAGE_CHARACTERS = 2**16


class Channel:
    """One end of a connection, with one JSON object per line.

    Attributes:
        error: Last socket error. None if the peer closed the connection, or while it is open.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = connection.makefile("r", encoding="utf-8", errors="replace", newline="\n")
        self.error: OSError | None = None
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE_OPTIONS.items():
            connection.setsockopt(socket.IPPROTO_TCP, option, value)

    @property
    def is_unreachable(self) -> bool:
        """Whether the peer's node, not only its process, has stopped responding."""
        return self.error is not None and self.error.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)

    def send(self, **message: Any) -> None:
        """Send a message. A failed delivery does not raise: the thread that receives detects the dead peer."""
        try:
            self._connection.sendall(f"{json.dumps(message)}\n".encode())
        except OSError as error:
            self.error = error

    def recv(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """Return the next message; None if the connection is closed or failed, or if the message is invalid."""
        self._connection.settimeout(timeout_s)
        try:
            message = json.loads(self._reader.readline(_MAX_MESSAGE_CHARACTERS))
        except OSError as error:
            self.error = error
            return None
        except ValueError:
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()
        self._connection.close()
