"""A network namespace with only its loopback, a virtual cluster in it, and a way from it to one port outside.

Needs root. Slurm's clients work outside: scripts with their names, in a folder that is first in PATH, enter the
namespace.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.slurm.cluster import PATIENT, VirtualCluster, slurm_conf

CLIENTS = ("sbatch", "squeue", "srun", "scontrol", "sinfo", "scancel", "sacct")
CLOSED = b""
BLOCK = 2**16


@contextlib.contextmanager
def network_namespace() -> Iterator[tuple[str, ...]]:
    """Make a network namespace while the block runs; yield the command that executes others in it."""
    # Slurm 22.05 calls getaddrinfo with AI_ADDRCONFIG, which resolves no IPv4 address if 127.0.0.1 is the only one.
    script = "ip link set lo up && ip address add 192.0.2.1/32 dev lo && echo ready && exec sleep infinity"
    with subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout
            assert holder.stdout.readline() == "ready\n", "no network namespace: run the tests as root"
            yield ("nsenter", f"--net=/proc/{holder.pid}/ns/net", "--")
        finally:
            holder.kill()


@contextlib.contextmanager
def isolated_cluster(prefix: tuple[str, ...], clients: Path) -> Iterator[VirtualCluster]:
    """Run a cluster in the namespace of `prefix`; `clients` is the folder for the scripts of Slurm's clients."""
    path = os.environ["PATH"]
    for name in CLIENTS:
        (clients / name).write_text(f'#!/bin/sh\nexec {" ".join(prefix)} env PATH="{path}" {name} "$@"\n')
        (clients / name).chmod(0o755)
    os.environ["PATH"] = f"{clients}:{path}"
    try:
        with VirtualCluster(settings=PATIENT, prefix=prefix) as cluster, slurm_conf(cluster):
            yield cluster
    finally:
        os.environ["PATH"] = path


@contextlib.contextmanager
def forwarded_port(prefix: tuple[str, ...], port: int) -> Iterator[int]:
    """Forward a port in the namespace of `prefix` to `port` outside of it while the block runs; yield its number."""
    command = [*prefix, sys.executable, __file__, "open", f"/proc/{os.getpid()}/ns/net", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield int(process.stdout.readline())
        finally:
            process.kill()


def _open(outside: str, target: str) -> None:
    """Open a port in this namespace, which keeps it, and continue outside."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.set_inheritable(True)
    serve = [sys.executable, __file__, "serve", str(listener.fileno()), target]
    os.execvp("nsenter", ["nsenter", f"--net={outside}", "--", *serve])  # noqa: S606 (no shell)


def _serve(descriptor: str, target: str) -> None:
    """Connect each connection of the port to `target`."""
    listener = socket.socket(fileno=int(descriptor))
    print(listener.getsockname()[1], flush=True)  # noqa: T201
    while True:
        inside, _ = listener.accept()
        outside = socket.create_connection(("127.0.0.1", int(target)))
        for source, sink in ((inside, outside), (outside, inside)):
            threading.Thread(target=_copy, args=(source, sink), daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while (block := source.recv(BLOCK)) != CLOSED:
            sink.sendall(block)
        sink.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    {"open": _open, "serve": _serve}[sys.argv[1]](*sys.argv[2:])
