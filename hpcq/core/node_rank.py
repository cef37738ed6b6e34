"""Where a process of a unit that spans several nodes stands, as a back end's engine is told.

Knows numbers and addresses. Must not know how they were agreed upon.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from dataclasses import dataclass

_SIOCGIFADDR = 0x8915
"""The request for an interface's address; it comes after its name and the kind of address (netdevice(7))."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One node of `nodes`, number `rank`. address: this node's own; head, port: where node 0 listens for the others."""

    nodes: int
    rank: int
    address: str
    head: str
    port: int

    @property
    def interface(self) -> str | None:
        """This node's network interface that has its address (IPv4)."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            for _, name in socket.if_nameindex():
                try:
                    told = fcntl.ioctl(asked, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                except OSError:
                    continue  # it has no such address
                if socket.inet_ntoa(told[20:24]) == self.address:
                    return name
        return None
