"""Real commands of hpcq in forked processes: each has the state of a new process, without the time of its imports."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcq.catalog import models, tasks, tools

_PRELOADED_MODULES = (
    "hpcq.cli.submit",
    "hpcq.cli.submit_and_wait",
    "hpcq.cli.report",
    "hpcq.api",
    "hpcq.launch.local_launcher",
    "hpcq.report.make_report",
    "hpcq.store",
)


def preload() -> None:
    """Import what every command imports, and read the tables of the catalog, before the first fork."""
    for name in _PRELOADED_MODULES:
        importlib.import_module(name)
    tools.backends()
    tools.quantizers()
    models.model_ids()
    tasks.find_task("arc_challenge")


class HungError(Exception):
    """A process did not end in time."""


@dataclass(frozen=True, kw_only=True)
class CommandOutput:
    """Exit code and output of a command."""

    code: int
    text: str

    @property
    def has_traceback(self) -> bool:
        """Whether the user saw a traceback."""
        return "Traceback (most recent call last)" in self.text


def in_fork(function: Callable[[], Any], *, folder: Path, timeout_s: float, output: Path | None = None) -> Any:
    """Return what `function` returns in a forked process, as JSON; its exceptions end the process with 1.

    Args:
        function: The function.
        folder: Working directory.
        timeout_s: Seconds after which the process is killed.
        output: File that gets standard output and standard error; by default they are dropped.

    Raises:
        HungError: The process had to be killed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        answer = Path(temporary) / "answer"
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setsid()
                target = os.open(output or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                for descriptor in (1, 2):
                    os.dup2(target, descriptor)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                # pytest replaces the streams of this process.
                sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
                os.chdir(folder)
                answer.write_text(json.dumps(function()), encoding="utf-8")
                code = 0
            except BaseException:  # noqa: BLE001 (the child ends here)
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        deadline_s = time.monotonic() + timeout_s
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline_s:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise HungError
            time.sleep(0.005)
        return json.loads(answer.read_text(encoding="utf-8")) if answer.is_file() else None


def run_command(
    arguments: Sequence[str], *, folder: Path, start_process: Callable[..., Any], timeout_s: float
) -> CommandOutput:
    """Run `hpcq` with these arguments in `folder`; its units start through `start_process`.

    Raises:
        HungError: The command had to be killed.
    """

    def run() -> int:
        from hpcq.cli import main
        from hpcq.launch import local_launcher

        local_launcher.start_process = start_process
        sys.argv = ["hpcq", *arguments]
        try:
            return main()
        except SystemExit as error:
            return error.code if isinstance(error.code, int) else 1

    with tempfile.NamedTemporaryFile() as output:
        code = in_fork(run, folder=folder, timeout_s=timeout_s, output=Path(output.name))
        text = Path(output.name).read_text(encoding="utf-8", errors="replace")
    return CommandOutput(code=-1 if code is None else code, text=text)
