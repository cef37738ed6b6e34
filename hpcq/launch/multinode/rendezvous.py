"""Rendezvous of the nodes of a unit, with its timeout: files in a shared folder, addresses from Slurm, free ports."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcq.core.errors import ProcessDiedError, SetupError, UserInputError
from hpcq.core.failures import Failure
from hpcq.core.files import write_text
from hpcq.core.frozen import dataclass
from hpcq.core.paths import RunLayout
from hpcq.core.processes import identity
from hpcq.launch.multinode.channel import Channel
from hpcq.slurm.client import run_client
from hpcq.slurm.scontrol import current_job

TIMEOUT_VARIABLE = "HPCQ_RENDEZVOUS_TIMEOUT_S"
DEFAULT_TIMEOUT_S = 50.0
"""Slurm starts the nodes of a job at the same time, and before the rendezvous they import the same few modules from the
same file system, so only the difference between nodes counts. A missing node is identified within a minute."""

HANDSHAKE_TIMEOUT_S = 10.0
POLL_INTERVAL_S = 0.2
_ENDPOINT_FILE = "endpoint.json"
_MAX_PORTS_BELOW_EPHEMERAL = 8192
_EPHEMERAL_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")


@dataclass(frozen=True, kw_only=True)
class RankInfo:
    """Rank of this process in a unit over several nodes.

    Attributes:
        rank: Node rank. Rank 0 is the coordinator.
        node: Name of this node.
        nodes: Names of all nodes, by rank.
        folder: Shared folder of the rendezvous.
    """

    rank: int
    node: str
    nodes: tuple[str, ...]
    folder: Path

    @property
    def timeout_s(self) -> float:
        """Seconds until all nodes must have connected to rank 0."""
        return read_timeout_s(os.environ)

    def presence_file(self, node: str) -> Path:
        """File that `node` writes when its process has started, even if it cannot connect to rank 0."""
        return self.folder / f"node-{node}.json"


def read_timeout_s(variables: Mapping[str, str]) -> float:
    """Return the rendezvous timeout in seconds, given these environment variables.

    Raises:
        UserInputError: The variable is not a positive number.
    """
    value = variables.get(TIMEOUT_VARIABLE) or str(DEFAULT_TIMEOUT_S)
    with contextlib.suppress(ValueError):
        if 0 < float(value) < math.inf:
            return float(value)
    raise UserInputError(
        f"{TIMEOUT_VARIABLE} = {value!r} must be a positive number of seconds: correct the environment."
    )


def current_rank_info(layout: RunLayout, unit: str) -> RankInfo:
    """Return the rank of this process, which Slurm started.

    The folder belongs to one start of one job, so files of an earlier start are never read.
    """
    own, node_list = current_job(), os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_JOB_NODELIST"]
    return RankInfo(
        rank=int(os.environ["SLURM_PROCID"]),
        node=os.environ["SLURMD_NODENAME"],
        nodes=tuple(run_client("scontrol", "show", "hostnames", node_list).split()),
        folder=layout.rendezvous / f"{unit}.{own.job_id}.{own.restarts}",
    )


def node_address(node: str) -> str:
    """Return the node's address in Slurm (NodeAddr): its name may not resolve, or resolve to a loopback address.

    Raises:
        SetupError: The address that Slurm reports does not resolve.
    """
    found = re.search(r"\bNodeAddr=(\S+)", run_client("scontrol", "show", "node", "--oneliner", node))
    address = found[1] if found else node
    try:
        infos = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SetupError(
            f"{node}: Slurm reports the address {address!r} (NodeAddr), which does not resolve on"
            f" {socket.gethostname()} ({error.strerror}). Ask the administrators to make it resolve on all nodes."
        ) from error
    infos.sort(key=lambda info: info[0] != socket.AF_INET)
    return str(infos[0][4][0])


def free_port() -> int:
    """Return a free port, for another process to listen on shortly afterwards.

    The port is below the ephemeral range, because the kernel could assign an ephemeral port to a connection first. An
    ephemeral port is returned only if no port below is free, or if the range starts at 1024, as on clusters with many
    connections.

    Raises:
        SetupError: No port is free.
    """
    lowest = _EPHEMERAL_RANGE_FILE.read_text(encoding="ascii").split()[0] if _EPHEMERAL_RANGE_FILE.exists() else "32768"
    ports = range(max(1024, int(lowest) - _MAX_PORTS_BELOW_EPHEMERAL), int(lowest))
    # Not the global random generator: tools seed it, and all units of a node would try the same ports.
    for port in (*random.SystemRandom().sample(ports, len(ports)), 0):
        with contextlib.suppress(OSError), socket.create_server(("", port)) as server:
            return int(server.getsockname()[1])
    raise SetupError(f"{socket.gethostname()}: no port is free. Find the processes that use them with `ss -tanp`.")


def listen(address: str) -> socket.socket:
    """Return a server socket on a free port of `address`.

    Raises:
        SetupError: The address does not belong to this node.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, 0), family=family)
    except OSError as error:
        raise SetupError(
            f"{address} is the address of {socket.gethostname()} in Slurm, but not an address of this host"
            f" ({error.strerror}). Correct NodeAddr in slurm.conf."
        ) from error


def publish_endpoint(rank_info: RankInfo, **endpoint: Any) -> None:
    """Write the address on which rank 0 listens, for the other nodes."""
    write_text(rank_info.folder / _ENDPOINT_FILE, json.dumps(endpoint))


def connect(rank_info: RankInfo) -> tuple[Channel, dict[str, Any]]:
    """Connect to rank 0; return the channel and rank 0's first message.

    Raises:
        ProcessDiedError: Rank 0 cannot be reached within the timeout.
    """
    own = {"rank": rank_info.rank, "node": rank_info.node, "process": identity(os.getpid())}
    write_text(rank_info.presence_file(rank_info.node), json.dumps(own))
    deadline_s, problem = time.monotonic() + rank_info.timeout_s, "has not published its address"
    while time.monotonic() < deadline_s:
        try:
            endpoint = json.loads((rank_info.folder / _ENDPOINT_FILE).read_text(encoding="utf-8"))
            channel = Channel(
                socket.create_connection((endpoint["address"], endpoint["port"]), timeout=HANDSHAKE_TIMEOUT_S)
            )
        except FileNotFoundError:
            time.sleep(POLL_INTERVAL_S)
            continue
        except (OSError, ValueError) as error:
            problem = f"cannot be reached ({error})"
            time.sleep(POLL_INTERVAL_S)
            continue
        if channel.connect(endpoint["key"].encode(), HANDSHAKE_TIMEOUT_S):
            channel.send(**own)
            welcome = channel.recv(HANDSHAKE_TIMEOUT_S)
            if welcome is not None:
                return channel, welcome
        channel.close()
        problem = "does not respond"
        time.sleep(POLL_INTERVAL_S)
    node = rank_info.nodes[0]
    raise ProcessDiedError(f"{node} {problem} within {rank_info.timeout_s:g} s.", failure=Failure.NODE_FAULT, node=node)
