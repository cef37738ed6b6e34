"""How the end is noticed: in a thread, while the main thread computes, and without a word to what comes after."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hpcq.launch.recovery.signals import Notices

LONG_COMPUTATION = """
import hashlib, os, signal, sys, threading, time
from hpcq.launch.recovery.signals import Notices
noticed = []
def act(number):
    noticed.append(time.monotonic())
with Notices(act, leaves=False):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.{signal})).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})
    ended = time.monotonic()
print(bool(noticed) and noticed[0] < ended - 0.2)
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR2"])
def test_a_signal_is_noticed_while_the_main_thread_is_far_from_python(number: str) -> None:
    """A single call into C that takes seconds does not put the notice off to its end."""
    rounds = 400_000
    while True:
        program = LONG_COMPUTATION.format(signal=number, rounds=rounds)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
        if done.stdout == "True\n":
            return
        # The call was over before the thread had its turn: a longer one tells more, on the fastest machine too.
        assert rounds < 100_000_000, done.stdout
        rounds *= 4


def be_told_twice(noticed: list[signal.Signals | None]) -> None:
    """Work, be told to stop, and be told again while leaving."""
    with Notices(noticed.append, leaves=True):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)


def test_where_it_leaves_only_the_first_signal_ends_the_main_thread() -> None:
    """A second SIGTERM does not break off what the first has made the unit do; each is noticed."""
    noticed: list[signal.Signals | None] = []
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        be_told_twice(noticed)
    assert left.value.code == 128 + signal.SIGTERM
    assert noticed == [signal.SIGTERM, signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_where_it_stays_a_signal_means_nothing_after_the_unit_either() -> None:
    """Nothing that comes from outside changes how the process exits, also when the block has ended."""
    program = (
        "import os, signal\n"
        "from hpcq.launch.recovery.signals import Notices\n"
        "with Notices(print, leaves=False): pass\n"
        "for number in (signal.SIGTERM, signal.SIGUSR2): os.kill(os.getpid(), number)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def counted() -> tuple[int, int]:
    """Threads, and open files."""
    return threading.active_count(), len([*Path("/proc/self/fd").iterdir()])


def test_nothing_is_left_of_it() -> None:
    """The thread has ended, and the pipe is closed."""
    before = counted()
    with Notices(lambda _number: None, leaves=True):
        pass
    assert counted() == before
    assert signal.set_wakeup_fd(-1) == -1


CHILD = """
import sys, time
from pathlib import Path
from hpcq.launch import signals
signals.PARENT_INTERVAL_S = 0.1
told = []
with signals.Notices(told.append, leaves=False):
    print("ready", flush=True)
    while not told: time.sleep(0.05)
Path(sys.argv[1]).write_text(repr(told))
"""
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.PIPE)
child.stdout.readline()
os._exit(0)
"""


def test_the_death_of_the_parent_is_noticed(tmp_path: Path) -> None:
    """A worker whose step's daemon was killed finds out by itself."""
    told = tmp_path / "told"
    subprocess.run([sys.executable, "-c", PARENT, CHILD, str(told)], check=True, timeout=60)
    deadline = time.monotonic() + 60
    while not (told.exists() and told.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert told.read_text() == "[None]"
