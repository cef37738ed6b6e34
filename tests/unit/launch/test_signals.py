"""The listener for termination signals: a thread that reacts while the main thread computes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hpcq.launch.recovery.signals import SignalListener

LONG_COMPUTATION = """
import hashlib, os, signal, sys, threading, time
from hpcq.launch.recovery.signals import SignalListener
received = []
def act(number):
    received.append(time.monotonic())
with SignalListener(act, exit_on_sigterm=False):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.{signal})).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})
    ended = time.monotonic()
print(bool(received) and received[0] < ended - 0.2)
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR2"])
def test_a_signal_is_handled_during_a_long_c_call(number: str) -> None:
    """The listener reacts before a C call of seconds in the main thread returns."""
    rounds = 400_000
    while True:
        program = LONG_COMPUTATION.format(signal=number, rounds=rounds)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
        if done.stdout == "True\n":
            return
        # The call returned before the thread was scheduled: try a longer call, which works on the fastest machine too.
        assert rounds < 100_000_000, done.stdout
        rounds *= 4


def receive_sigterm_twice(received: list[signal.Signals | None]) -> None:
    """Receive SIGTERM, and again while the block is left."""
    with SignalListener(received.append, exit_on_sigterm=True):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)


def test_only_the_first_sigterm_raises_in_the_main_thread() -> None:
    """A second SIGTERM does not interrupt the reaction to the first; the callback gets both."""
    received: list[signal.Signals | None] = []
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exited:
        receive_sigterm_twice(received)
    assert exited.value.code == 128 + signal.SIGTERM
    assert received == [signal.SIGTERM, signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_exit_on_sigterm_signals_are_ignored_after_the_block() -> None:
    """Signals do not change the exit code of the process, even after the block."""
    program = (
        "import os, signal\n"
        "from hpcq.launch.recovery.signals import SignalListener\n"
        "with SignalListener(print, exit_on_sigterm=False): pass\n"
        "for number in (signal.SIGTERM, signal.SIGUSR2): os.kill(os.getpid(), number)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def count_resources() -> tuple[int, int]:
    """Number of threads and of open files."""
    return threading.active_count(), len([*Path("/proc/self/fd").iterdir()])


def test_the_listener_releases_its_resources() -> None:
    """The thread has ended, and the pipe is closed."""
    before = count_resources()
    with SignalListener(lambda _number: None, exit_on_sigterm=True):
        pass
    assert count_resources() == before
    assert signal.set_wakeup_fd(-1) == -1


CHILD = """
import sys, time
from pathlib import Path
from hpcq.launch.recovery import signals
signals.PARENT_CHECK_INTERVAL_S = 0.1
signals_received = []
with signals.SignalListener(signals_received.append, exit_on_sigterm=False):
    print("ready", flush=True)
    while not signals_received: time.sleep(0.05)
Path(sys.argv[1]).write_text(repr(signals_received))
"""
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.PIPE)
child.stdout.readline()
os._exit(0)
"""


def test_the_death_of_the_parent_is_detected(tmp_path: Path) -> None:
    """A worker whose slurmstepd was killed gets None."""
    signals_received = tmp_path / "signals_received"
    subprocess.run([sys.executable, "-c", PARENT, CHILD, str(signals_received)], check=True, timeout=60)
    deadline = time.monotonic() + 60
    while not (signals_received.exists() and signals_received.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert signals_received.read_text() == "[None]"
