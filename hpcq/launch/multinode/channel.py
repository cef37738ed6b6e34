"""A line between two nodes of a unit, for as long as it runs: messages, and the news that the other side has ended.

Knows TCP: when a process ends, however it does, its kernel closes the line; a node that is gone answers no probe. Must
not know what is said.
"""

from __future__ import annotations

import errno
import json
import socket
from typing import Any

_PROBES = {
    socket.TCP_KEEPIDLE: 10,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 25_000,
}
"""Seconds before the first probe, between two, how many; milliseconds that what is sent may go unacknowledged."""
_LONGEST_MESSAGE = 2**16


class Line:
    """One end. gone: why the other is not heard any more, where it did not close the line itself."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = connection.makefile("r", encoding="utf-8", errors="replace", newline="\n")
        self.gone: OSError | None = None
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _PROBES.items():
            connection.setsockopt(socket.IPPROTO_TCP, option, value)

    @property
    def is_silent(self) -> bool:
        """Whether the node itself, not a process of it, has ceased to answer."""
        return self.gone is not None and self.gone.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)

    def send(self, **message: Any) -> None:
        """Send a message; one that cannot be delivered is noticed by whoever hears."""
        try:
            self._connection.sendall(f"{json.dumps(message)}\n".encode())
        except OSError as error:
            self.gone = error

    def hear(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """The next message; None: there will be none, or what came is none of ours."""
        self._connection.settimeout(timeout_s)
        try:
            message = json.loads(self._reader.readline(_LONGEST_MESSAGE))
        except OSError as error:
            self.gone = error
            return None
        except ValueError:
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        """Tell the other side that nothing more will come."""
        self._reader.close()
        self._connection.close()
