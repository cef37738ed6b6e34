"""Processes of this host: identity, exit, termination of trees; and the interface of an address."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from hpcq.core.node_context import NodeContext
from hpcq.core.processes import find, identity, is_alive, kill_tree, send_signal, terminate, wait_for_exit

TIMEOUT_S = 30.0
PARENT = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(child.pid, flush=True)
child.wait()
"""


@contextmanager
def parent_and_child() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that ignores SIGTERM, and the identity of its child."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        yield parent, str(identity(int(parent.stdout.readline())))
        parent.kill()


def test_an_identity_has_host_boot_pid_and_ticks_since_boot() -> None:
    """Its format is stored in locks and attempts, and the start time does not depend on the wall clock."""
    mine = psutil.Process()
    host, boot, pid, start = str(identity(os.getpid())).split()
    assert (host, int(pid)) == (os.uname().nodename, os.getpid())
    assert len(boot) == 36
    assert int(start) / os.sysconf("SC_CLK_TCK") + psutil.boot_time() == pytest.approx(mine.create_time(), abs=1.5)


def test_a_process_that_survives_sigterm_is_killed_with_its_descendants() -> None:
    """A unit that does not stop leaves no engine behind."""
    with parent_and_child() as (parent, child):
        terminate(str(identity(parent.pid)), timeout_s=0.5)
        assert parent.wait(TIMEOUT_S) == -signal.SIGKILL
        process = find(int(child.split()[-2]))
        assert process is None or wait_for_exit([process], TIMEOUT_S) == []
        assert not is_alive(child)


def test_another_process_with_the_same_id_gets_no_signal() -> None:
    """An identity with another start time belongs to a process that has exited."""
    with parent_and_child() as (parent, child):
        other = child[:-1] + str((int(child[-1]) + 1) % 10)
        assert not send_signal(other, signal.SIGKILL)
        terminate(other, timeout_s=0.0)
        assert is_alive(child)
        kill_tree(psutil.Process(parent.pid))


def test_a_zombie_has_exited_and_stays_for_its_parent() -> None:
    """Its parent still gets the exit code."""
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"]) as process:
        found = find(process.pid)
        assert found is not None
        assert wait_for_exit([found], TIMEOUT_S) == []
        assert found.status() == psutil.STATUS_ZOMBIE
        assert identity(process.pid) is None
        assert process.wait() == 7


def test_a_process_that_keeps_running_is_returned() -> None:
    """After the timeout, and not before another one has exited."""
    with parent_and_child() as (parent, _):
        running = psutil.Process(parent.pid)
        with subprocess.Popen([sys.executable, "-c", ""]) as ended:
            ended.wait()
            assert wait_for_exit([running], 0.0) == [running]
        kill_tree(running)


@pytest.mark.parametrize(("address", "interface"), [("127.0.0.1", "lo"), ("192.0.2.1", None), ("not an address", None)])
def test_the_interface_of_an_address(address: str, interface: str | None) -> None:
    """192.0.2.0/24 is reserved for documentation (RFC 5737)."""
    context = NodeContext(nnodes=2, node_rank=0, address=address, master_addr=address, master_port=1)
    assert context.network_interface == interface


def test_the_interface_of_an_ipv6_address() -> None:
    """Link-local addresses have a suffix that is not part of the address."""
    addresses = [
        (one.address.partition("%")[0], name)
        for name, found in psutil.net_if_addrs().items()
        for one in found
        if one.family.name == "AF_INET6"
    ]
    for address, name in addresses:
        context = NodeContext(nnodes=2, node_rank=0, address=address, master_addr=address, master_port=1)
        assert context.network_interface in [each for known, each in addresses if known == address], name
