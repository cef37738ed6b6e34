"""Submission of a batch script, and the job id in what sbatch, or a site's wrapper of it, prints."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hpcq.core.errors import HpcqError
from hpcq.slurm.client import NOT_AVAILABLE
from hpcq.slurm.environment import client_environment

TIMEOUT_S = 120.0
"""Seconds for one call: sbatch repeats its request by itself while the controller is busy."""

_PARSABLE = re.compile(r"(\d+)(;[\w.-]+)?")
"""Output of `sbatch --parsable`: the job id, and the cluster's name where there are several."""

_SENTENCE = re.compile(r"Submitted batch job (\d+)( on cluster \S+)?")
"""Output of sbatch without the option, which a site's wrapper may not pass on."""

_LIMITS = ("MaxSubmitJob", "MaxJobs", "job submit limit")
"""Parts of sbatch's error messages at a limit on the number of jobs. sbatch has no exit code of its own for it."""

_TIMED_OUT = "sbatch did not end within"

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class RejectedError(HpcqError):
    """sbatch ended with an error. The job may exist all the same: the answer of the controller can be lost."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What sbatch answered.

    Attributes:
        job_id: Id of the job. None: its output has none.
        output: All that it printed, also on standard error: messages of the site's submit filter, for example.
    """

    job_id: str | None
    output: str


def submit_script(script: Path) -> Answer:
    """Submit a batch script.

    The call has a session of its own: Ctrl-C in the terminal does not end it before it has printed the job id.

    Raises:
        RejectedError: sbatch ended with an error, or not within TIMEOUT_S. The message has all of its output.
    """
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(script)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
            env=client_environment(),
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise RejectedError(f"{_TIMED_OUT} {TIMEOUT_S:g} s.") from None
    output = "\n".join(filter(None, (done.stderr.strip(), done.stdout.strip())))
    if done.returncode:
        raise RejectedError(output or f"sbatch ended with exit code {done.returncode} and no message.")
    return Answer(job_id=parse_job_id(done.stdout), output=output)


def parse_job_id(output: str) -> str | None:
    """Return the job id in the output of sbatch: the last line that is an id alone, or sbatch's sentence; else None.

    Other lines are a site's own ("job 120 of your group is waiting").
    """
    for line in reversed(output.splitlines()):
        found = _PARSABLE.fullmatch(line.strip()) or _SENTENCE.fullmatch(line.strip())
        if found:
            return found[1]
    return None


def advice(output: str) -> str:
    """Return what the user can do about a rejection, by the messages of sbatch."""
    if any(phrase in output for phrase in _LIMITS):
        return (
            "This is a limit on submitted jobs or their size: if the size is right, wait until some of your jobs have"
            " ended, and run the command again."
        )
    if any(phrase in output for phrase in (*NOT_AVAILABLE, _TIMED_OUT)):
        return (
            "Slurm did not answer in time: run the command again in a few minutes. It finds the job if Slurm has"
            " accepted it after all."
        )
    return "Correct the cluster profile and run the command again."


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Deliver SIGINT, SIGTERM and SIGHUP at the end of the block: what sbatch accepted is recorded before.

    In other threads than the main one, which receive no signals, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in _INTERRUPTS if signal.getsignal(number) is not None}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for one in dict.fromkeys(received):
            signal.raise_signal(one)
