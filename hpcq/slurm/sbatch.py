"""Submission of a batch script, and the job id in what sbatch, or a site's wrapper of it, prints."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from hpcq.core.errors import HpcqError
from hpcq.core.frozen import dataclass
from hpcq.core.sentences import terminal_text
from hpcq.slurm.client import NOT_AVAILABLE, NOT_CONNECTED, SlurmUnavailableError, cluster_options
from hpcq.slurm.environment import client_environment
from hpcq.slurm.reasons import key_to_correct

_SECOND_CALL_S = 1.0
"""Seconds after which a request that the controller has not received is sent again."""

TIMEOUT_S = 120.0
"""Seconds for one call: sbatch repeats its own request while the controller is busy."""

_PARSABLE = re.compile(r"(\d+)(?:;([\w.-]+))?")
"""Output of `sbatch --parsable`: the job id, and the cluster's name where there are several."""

_SENTENCE = re.compile(r"Submitted batch job (\d+)(?: on cluster (\S+))?")
"""Output of sbatch without the option, which a site's wrapper may not pass on."""

_JOB_LIMITS = ("SubmitJob", "MaxJobs")
_NAMED_LIMIT = re.compile(r"\b(?:Assoc|QOS)(?:Grp|Max|Min)\w+")
_ANY_LIMIT = "job submit limit"
"""sbatch has one error for all limits of accounts and QOS: "Job violates accounting/QOS policy (job submit limit,
user's size and/or time limits)". Some versions print the limit's name before it (`QOSMaxWallDurationPerJobLimit`).
Without a name, it may be a limit on the number of jobs, and is treated as one."""

_TIMED_OUT = "sbatch did not end within"

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class RejectedError(HpcqError):
    """sbatch ended with an error. The job may exist nevertheless: the answer of the controller can be lost."""


class NoAnswerError(RejectedError, SlurmUnavailableError):
    """The controller did not respond to sbatch, or not in time. The job may exist."""


class _NotReceivedError(NoAnswerError):
    """sbatch could not connect to the controller: there is no job."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What sbatch answered.

    Attributes:
        job_id: Id of the job. None: its output has none.
        cluster: Cluster that it names. None: none.
        output: All that it printed, also on standard error: messages of the site's submit filter, for example.
    """

    job_id: str | None
    output: str
    cluster: str | None = None


def submit_script(script: Path) -> Answer:
    """Submit a batch script. If the controller has not received the request, it is sent once more.

    The call has a session of its own: Ctrl-C in the terminal does not end it before it has printed the job id.

    Raises:
        NoAnswerError: The controller did not respond, or sbatch did not end within TIMEOUT_S.
        RejectedError: sbatch ended with another error. The message has all of its output.
    """
    try:
        return _call(script)
    except _NotReceivedError:
        time.sleep(_SECOND_CALL_S)
        return _call(script)


def _call(script: Path) -> Answer:
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", *cluster_options(), str(script)],
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
        raise NoAnswerError(f"{_TIMED_OUT} {TIMEOUT_S:g} s.") from None
    output = terminal_text("\n".join(filter(None, (done.stderr.strip(), done.stdout.strip()))))
    if done.returncode:
        raise _error_type(output)(output or f"sbatch ended with exit code {done.returncode} and no message.")
    job_id, cluster = parse_job_id(done.stdout)
    return Answer(job_id=job_id, output=output, cluster=cluster)


def _error_type(output: str) -> type[RejectedError]:
    if any(phrase in output for phrase in NOT_CONNECTED):
        return _NotReceivedError
    return NoAnswerError if any(phrase in output for phrase in NOT_AVAILABLE) else RejectedError


def parse_job_id(output: str) -> tuple[str | None, str | None]:
    """Return the job id and the cluster in the output of sbatch: the last line that is an id, or sbatch's sentence.

    Other lines are a site's own ("job 120 of your group is waiting").
    """
    for line in reversed(output.splitlines()):
        found = _PARSABLE.fullmatch(line.strip()) or _SENTENCE.fullmatch(line.strip())
        if found:
            return found[1], found[2]
    return None, None


def is_job_limit(output: str) -> bool:
    """Whether sbatch reports a limit on the number of submitted jobs, or one that it does not name."""
    if names := _NAMED_LIMIT.findall(output):
        return any(phrase in name for name in names for phrase in _JOB_LIMITS)
    return _ANY_LIMIT in output or any(phrase in output for phrase in _JOB_LIMITS)


def advice(output: str) -> str:
    """Return what the user can do about a rejection, by the messages of sbatch."""
    if is_job_limit(output):
        return (
            "This is a limit on submitted jobs or their size: if the size is right, wait until some of your jobs have"
            " ended, and run the command again. To submit larger runs in portions, set slurm.max_submitted_jobs."
        )
    if any(phrase in output for phrase in (*NOT_AVAILABLE, _TIMED_OUT)):
        return (
            "Slurm did not respond in time: run the command again in a few minutes. It finds the job if Slurm has"
            " accepted it after all."
        )
    key = key_to_correct(output)
    return f"Correct {f'{key} in ' if key else ''}the cluster profile and run the command again."


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
