"""How the nodes of a unit find each other: cards in a folder that they share, addresses from Slurm, free ports.

Knows Slurm's names of nodes and the folder of one start of one job. Must not know what the nodes meet for.
"""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcq.core.errors import ProcessEnded, SetupError, UserInputError
from hpcq.core.failures import Failure
from hpcq.core.files import write_text
from hpcq.core.paths import RunLayout
from hpcq.core.processes import identity
from hpcq.launch.multinode.channel import Line
from hpcq.launch.recovery.stale_attempts import own_job
from hpcq.slurm.squeue import call

DEADLINE_VARIABLE = "HPCQ_MEETING_SECONDS"
DEADLINE_S = 50.0
"""Slurm starts a job's nodes at once, and before they meet they import the same few modules from the same file system:
what counts is by how much one is later than another. Within a minute it is known which one does not come."""

HELLO_S = 10.0
POLL_INTERVAL_S = 0.2
_HEAD = "head.json"
_PORTS_BELOW_EPHEMERAL = 8192
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


@dataclass(frozen=True, kw_only=True)
class Seat:
    """This process's part in a unit over several nodes. node: its name; nodes: all names; folder: where they meet."""

    rank: int
    node: str
    nodes: tuple[str, ...]
    folder: Path

    @property
    def deadline_s(self) -> float:
        """Seconds in which all nodes must have come."""
        return deadline_s(os.environ)

    def card(self, node: str) -> Path:
        """What `node` tells of its process: that it has begun, whatever becomes of the way to node 0."""
        return self.folder / f"node-{node}.json"


def deadline_s(variables: Mapping[str, str]) -> float:
    """Seconds in which all nodes must have come, where the environment has these variables.

    Raises:
        UserInputError: it says what is no time.
    """
    told = variables.get(DEADLINE_VARIABLE) or str(DEADLINE_S)
    with contextlib.suppress(ValueError):
        if 0 < float(told) < math.inf:
            return float(told)
    raise UserInputError(f"{DEADLINE_VARIABLE} = {told!r} is no number of seconds above 0: correct the environment.")


def own_seat(layout: RunLayout, unit: str) -> Seat:
    """The seat of a process that Slurm started.

    The folder is that of one start of one job: what an earlier one left behind is never met.
    """
    own, listed = own_job(), os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_JOB_NODELIST"]
    return Seat(
        rank=int(os.environ["SLURM_PROCID"]),
        node=os.environ["SLURMD_NODENAME"],
        nodes=tuple(call("scontrol", "show", "hostnames", listed).split()),
        folder=layout.meetings / f"{unit}.{own.job_id}.{own.restart}",
    )


def address_of(node: str) -> str:
    """The node's address by Slurm's account: its name need not resolve, and often does to a loopback.

    Raises:
        SetupError: Slurm tells none that can be found.
    """
    found = re.search(r"\bNodeAddr=(\S+)", call("scontrol", "show", "node", "--oneliner", node))
    told = found[1] if found else node
    try:
        infos = socket.getaddrinfo(told, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SetupError(
            f"{node}: Slurm gives {told!r} as its address (NodeAddr), which cannot be found from there"
            f" ({error.strerror}). Ask the cluster's administrators to make it resolve on its nodes."
        ) from error
    infos.sort(key=lambda info: info[0] != socket.AF_INET)
    return str(infos[0][4][0])


def free_port() -> int:
    """A port on which nobody listens, for another process to listen on soon.

    From below those that the kernel gives to connections by itself, one of which might get it before; one of those
    where none below is free, or there is no room: clusters with many connections have them begin at 1024.

    Raises:
        SetupError: there is none.
    """
    least = _EPHEMERAL.read_text(encoding="ascii").split()[0] if _EPHEMERAL.exists() else "32768"
    ports = range(max(1024, int(least) - _PORTS_BELOW_EPHEMERAL), int(least))
    # Not the shared generator: tools seed it, and all units of a node would try the same ports.
    for port in (*random.SystemRandom().sample(ports, len(ports)), 0):
        with contextlib.suppress(OSError), socket.create_server(("", port)) as server:
            return int(server.getsockname()[1])
    raise SetupError(f"{socket.gethostname()}: no port is free. See with `ss -tan` what holds them.")


def listen(address: str) -> socket.socket:
    """A server at a free port of `address`.

    Raises:
        SetupError: it is not this node's.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, 0), family=family)
    except OSError as error:
        raise SetupError(
            f"{address}: is no address of {socket.gethostname()}, as Slurm says it is ({error.strerror}). Correct"
            " NodeAddr in slurm.conf."
        ) from error


def publish_head(seat: Seat, **card: Any) -> None:
    """Tell the others where node 0 listens."""
    write_text(seat.folder / _HEAD, json.dumps(card))


def reach_head(seat: Seat) -> tuple[Line, dict[str, Any]]:
    """A line to node 0, and what it said in welcome.

    Raises:
        ProcessEnded: it cannot be reached in time.
    """
    own = {"rank": seat.rank, "node": seat.node, "process": identity(os.getpid())}
    write_text(seat.card(seat.node), json.dumps(own))
    deadline_s, why = time.monotonic() + seat.deadline_s, "has not said where it listens"
    while time.monotonic() < deadline_s:
        try:
            card = json.loads((seat.folder / _HEAD).read_text(encoding="utf-8"))
            line = Line(socket.create_connection((card["address"], card["port"]), timeout=HELLO_S))
        except FileNotFoundError:
            time.sleep(POLL_INTERVAL_S)
            continue
        except (OSError, ValueError) as error:
            why = f"cannot be reached ({error})"
            time.sleep(POLL_INTERVAL_S)
            continue
        line.send(token=card["token"], **own)
        welcome = line.hear(HELLO_S)
        if welcome is not None:
            return line, welcome
        line.close()
        why = "does not answer"
    head = seat.nodes[0]
    raise ProcessEnded(f"{head} {why} within {seat.deadline_s:g} s.", failure=Failure.NODE_FAULT, node=head)
