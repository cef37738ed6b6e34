"""Run a Slurm command with a timeout and clear errors; facts about the whole cluster (name, MaxArraySize).

All clients are called with a timeout, because they block forever if the controller is down. A call that fails at once,
because the controller is busy, is repeated once. Within `patience`, calls to which the controller does not respond are
repeated: it takes minutes to restart, and this must not end a unit.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

from hpcq.core.environments import PACKAGE_VARIABLE
from hpcq.core.errors import SetupError
from hpcq.core.frozen import dataclass
from hpcq.core.sentences import one_line
from hpcq.slurm.environment import client_environment

CLIENT_TIMEOUT_S = 30.0
_SECOND_CALL_S = 1.0
"""Seconds after which a call that failed at once is repeated."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0

NOT_CONNECTED = ("Unable to contact slurm controller (connect failure)", "Connection refused")
"""Parts of the clients' error messages if the controller has not received the request."""
NOT_AVAILABLE = (
    *NOT_CONNECTED,
    "Socket timed out",
    "Unable to contact slurm controller",
    "temporarily unable",
    "Connection timed out",
    "Zero Bytes were transmitted",
    "backup controller",
    # munged of this machine or of the controller's is busy, or restarts
    "Protocol authentication error",
    "Invalid authentication credential",
    "Munge encode failed",
)
"""Parts of the clients' error messages if the controller is busy or absent. They have no exit code for it."""

T = TypeVar("T")

_patience_s: ContextVar[float] = ContextVar("patience_s", default=0.0)
_cluster: ContextVar[str | None] = ContextVar("cluster", default=None)


class SlurmUnavailableError(SetupError):
    """Slurm's controller does not respond."""


class _NoResponseError(SlurmUnavailableError):
    """A client did not end before its timeout."""


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Repeat calls in the block without a response of the controller, each for up to `seconds`, with growing pauses."""
    token = _patience_s.set(seconds)
    try:
        yield
    finally:
        _patience_s.reset(token)


@contextlib.contextmanager
def on_cluster(name: str | None) -> Iterator[None]:
    """Send calls in the block to the cluster `name`; if it is None or the cluster of this job, to the local one.

    Only a job of hpcq is known to run on its cluster: salloc sets SLURM_CLUSTER_NAME in a shell on the login node of
    another one, too.
    """
    is_own_job = PACKAGE_VARIABLE in os.environ
    token = _cluster.set(None if is_own_job and name == os.environ.get("SLURM_CLUSTER_NAME") else name)
    try:
        yield
    finally:
        _cluster.reset(token)


def cluster_options() -> tuple[str, ...]:
    """Return the option that sends a client's request to the cluster of `on_cluster`."""
    name = _cluster.get()
    return (f"--clusters={name}",) if name else ()


def run_client(program: str, *arguments: str, timeout_s: float | None = None) -> str:
    """Run one of Slurm's clients and return its output.

    Args:
        program: The client.
        arguments: Its arguments.
        timeout_s: Timeout of the call; by default CLIENT_TIMEOUT_S.

    Raises:
        SlurmUnavailableError: The controller does not respond.
        SetupError: The client is missing or fails. The message has its last line of output.
    """
    command = (*cluster_options(), *arguments)
    return repeat_until_answered(lambda: _call_twice(program, command, timeout_s or CLIENT_TIMEOUT_S))


def repeat_until_answered(call: Callable[[], T]) -> T:
    """Return the result of `call`, which is repeated within `patience` while Slurm does not respond."""
    deadline_s, pause_s = time.monotonic() + _patience_s.get(), _FIRST_PAUSE_S
    while True:
        try:
            return call()
        except SlurmUnavailableError as error:
            if time.monotonic() + pause_s > deadline_s:
                raise
            sys.stderr.write(f"hpcq: {error} The next call is in {pause_s:g} s.\n")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _call_twice(program: str, arguments: tuple[str, ...], timeout_s: float) -> str:
    try:
        return _call(program, arguments, timeout_s)
    except _NoResponseError:
        raise
    except SlurmUnavailableError:
        time.sleep(_SECOND_CALL_S)
        return _call(program, arguments, timeout_s)


def _call(program: str, arguments: tuple[str, ...], timeout_s: float) -> str:
    try:
        done = subprocess.run(
            [program, *arguments],
            capture_output=True,
            text=True,
            errors="replace",  # names and comments of other users' jobs
            timeout=timeout_s,
            check=False,
            env=client_environment(),
        )
    except FileNotFoundError:
        raise SetupError(
            f"{program} is missing on this machine: log in to the cluster, or use cluster.profile=local."
        ) from None
    except subprocess.TimeoutExpired:
        raise _NoResponseError(
            f"`{program}` got no response from Slurm within {timeout_s:g} s. Try again, or ask the administrators."
        ) from None
    if done.returncode:
        printed = done.stderr.strip() or done.stdout.strip() or "no output"
        kind = SlurmUnavailableError if any(phrase in printed for phrase in NOT_AVAILABLE) else SetupError
        raise kind(f"`{program}` failed: {one_line(printed.splitlines()[-1])}")
    return done.stdout


def require_clients() -> None:
    """Check that sbatch and srun are installed on this machine.

    Raises:
        SetupError: They are not.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise SetupError(
            "sbatch or srun is missing on this machine: log in to the cluster, or use cluster.profile=local."
        )


def check_cluster() -> None:
    """Check that jobs can be submitted from this machine.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    require_clients()
    cluster_settings()


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Settings of a cluster.

    Attributes:
        name: Its ClusterName. None: not printed.
        max_array_size: Maximum number of elements of an array.
    """

    name: str | None
    max_array_size: int


def cluster_settings() -> ClusterSettings:
    """Return the settings of the cluster, from one call.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    output = run_client("scontrol", "show", "config")
    size = parse_setting(output, "MaxArraySize")
    if size is None or not size.isdecimal():
        raise SetupError("`scontrol show config` does not print MaxArraySize: check that it is Slurm's scontrol.")
    return ClusterSettings(name=parse_setting(output, "ClusterName"), max_array_size=max(1, int(size)))


def cluster_name() -> str | None:
    """Return the ClusterName of this cluster; None if scontrol does not print it.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    return parse_setting(run_client("scontrol", "show", "config"), "ClusterName")


def parse_setting(output: str, name: str) -> str | None:
    """Return a value in the output of `scontrol show config`; None if it is missing."""
    found = re.search(rf"^{name}\s*=\s*(\S+)", output, re.MULTILINE)
    return found[1] if found else None
