"""Rank, addresses and port of one node of a multi-node unit, in the terms of torchrun and vLLM."""

from __future__ import annotations

import fcntl
import socket
import struct
from dataclasses import dataclass

_SIOCGIFADDR = 0x8915
"""ioctl for the address of a network interface; the reply has it after name and address family (netdevice(7))."""


@dataclass(frozen=True, kw_only=True)
class NodeContext:
    """One node of a unit that spans several nodes.

    Attributes:
        nnodes: Number of nodes of the unit.
        node_rank: Number of this node, from 0.
        address: Address of this node (IPv4).
        master_addr: Address of node 0.
        master_port: Port on which node 0 listens for the other nodes.
    """

    nnodes: int
    node_rank: int
    address: str
    master_addr: str
    master_port: int

    @property
    def network_interface(self) -> str | None:
        """Name of the network interface that has `address`; None if there is none."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
            for _, name in socket.if_nameindex():
                try:
                    reply = fcntl.ioctl(query, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                except OSError:
                    continue  # no IPv4 address
                if socket.inet_ntoa(reply[20:24]) == self.address:
                    return name
        return None
