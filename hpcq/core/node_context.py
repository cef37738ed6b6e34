"""Rank, addresses and port of one node of a multi-node unit, in the terms of torchrun and vLLM."""

from __future__ import annotations

from hpcq.core.frozen import dataclass


@dataclass(frozen=True, kw_only=True)
class NodeContext:
    """One node of a unit that spans several nodes.

    Attributes:
        nnodes: Number of nodes of the unit.
        node_rank: Number of this node, from 0.
        address: Address of this node (IPv4 or IPv6).
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
        import psutil

        for name, addresses in psutil.net_if_addrs().items():
            # An IPv6 address of a link has its interface as a suffix.
            if self.address in {one.address.partition("%")[0] for one in addresses}:
                return str(name)
        return None
