"""Client of the fork server: its start, and the function with which the local launcher starts units through it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(kw_only=True)
class WarmWorkers:
    """The fork server of this process; use it as a context manager.

    Attributes:
        python: Interpreter of the environment `transformers`.
        timeout_s: Seconds after which a child is killed: it hangs.
    """

    python: Path
    timeout_s: float = 120.0
    _folder: Path = field(init=False)
    _process: subprocess.Popen[str] = field(init=False)

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="hpcq-warm-"))
        command = [str(self.python), "-m", "tests.mutations.worker_server", str(self._socket)]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with (self._folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout
        if "ready\n" not in self._process.stdout:  # libraries print, too
            raise RuntimeError((self._folder / "log").read_text())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        with self._process:  # waits, and closes its pipe
            shutil.rmtree(self._folder)

    @property
    def _socket(self) -> Path:
        return self._folder / "socket"

    def start(self, request: Mapping[str, Any]) -> int:
        """Start a child and return its process id."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._socket))
            with connection.makefile("rw", encoding="utf-8") as stream:
                stream.write(json.dumps(request) + "\n")
                stream.flush()
                return int(stream.readline())

    def run(self, request: Mapping[str, Any]) -> bool:
        """Run a child to its end; return whether it ended by itself."""
        pid = self.start(request)
        deadline_s = time.monotonic() + self.timeout_s
        while is_alive(pid):
            if time.monotonic() > deadline_s:
                os.kill(pid, signal.SIGKILL)
                return False
            time.sleep(0.01)
        return True

    def start_process(self, command: Sequence[str], log: Path, variables: Mapping[str, str]) -> WarmProcess:
        """Start a unit through this server; it replaces `hpcq.launch.local_launcher.start_process`."""
        environment = {**variables, "SUBMITIT_EXECUTOR": "local", "HPCQ_ENVIRONMENT": "transformers"}
        request = {"unit": command[-2:], "folder": str(Path.cwd()), "log": str(log), "environment": environment}
        return WarmProcess(self.start(request), log, self)


class WarmProcess:
    """A unit that runs, with the part of Popen's interface that the launcher uses."""

    def __init__(self, pid: int, log: Path, workers: WarmWorkers) -> None:
        self.pid = pid
        self._log = log
        self._deadline_s = time.monotonic() + workers.timeout_s

    def poll(self) -> int | None:
        """Return a number if the process has ended, else None; a process that hangs is killed."""
        if is_alive(self.pid) and time.monotonic() > self._deadline_s:
            (self._log.parent / "hung").touch()
            os.kill(self.pid, signal.SIGKILL)
        return None if is_alive(self.pid) else 0


def is_alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
