"""Run a Slurm command with a timeout and clear errors; facts about the whole cluster (name, MaxArraySize).

All clients are called with a timeout, because they block forever if the controller is down. Within `patience`, calls
that the controller does not answer are repeated: a restart of the controller takes minutes, and must not end a unit.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar

from hpcq.core.errors import SetupError
from hpcq.slurm.environment import client_environment

CLIENT_TIMEOUT_S = 30.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0

NOT_AVAILABLE = (
    "Socket timed out",
    "Unable to contact slurm controller",
    "temporarily unable",
    "Connection refused",
    "Connection timed out",
    "Zero Bytes were transmitted",
    "backup controller",
)
"""Parts of the clients' error messages if the controller is busy or absent. They have no exit code for it."""

_patience_s: ContextVar[float] = ContextVar("patience_s", default=0.0)


class SlurmUnavailableError(SetupError):
    """Slurm's controller does not answer."""


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Repeat calls in the block that the controller does not answer, each for up to `seconds`, with growing pauses."""
    token = _patience_s.set(seconds)
    try:
        yield
    finally:
        _patience_s.reset(token)


def run_client(program: str, *arguments: str, timeout_s: float | None = None) -> str:
    """Run one of Slurm's clients and return its output.

    Args:
        program: The client.
        arguments: Its arguments.
        timeout_s: Timeout of the call; by default CLIENT_TIMEOUT_S.

    Raises:
        SlurmUnavailableError: The controller does not answer.
        SetupError: The client is missing or fails. The message has its last line of output.
    """
    deadline_s, pause_s = time.monotonic() + _patience_s.get(), _FIRST_PAUSE_S
    while True:
        try:
            return _call(program, arguments, timeout_s or CLIENT_TIMEOUT_S)
        except SlurmUnavailableError as error:
            if time.monotonic() + pause_s > deadline_s:
                raise
            sys.stderr.write(f"hpcq: {error} The next call is in {pause_s:g} s.\n")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


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
        raise SlurmUnavailableError(
            f"`{program}` got no response from Slurm within {timeout_s:g} s. Try again, or ask the administrators."
        ) from None
    if done.returncode:
        printed = done.stderr.strip() or done.stdout.strip() or "no output"
        kind = SlurmUnavailableError if any(phrase in printed for phrase in NOT_AVAILABLE) else SetupError
        raise kind(f"`{program}` failed: {printed.splitlines()[-1]}")
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
    max_array_size()


def max_array_size() -> int:
    """Return the maximum number of elements of an array.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    found = _cluster_setting("MaxArraySize")
    if found is None or not found.isdecimal():
        raise SetupError("`scontrol show config` does not print MaxArraySize: check that it is Slurm's scontrol.")
    return max(1, int(found))


def cluster_name() -> str:
    """Return the ClusterName of this cluster.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    return _cluster_setting("ClusterName") or "cluster"


def _cluster_setting(name: str) -> str | None:
    found = re.search(rf"^{name}\s*=\s*(\S+)", run_client("scontrol", "show", "config"), re.MULTILINE)
    return found[1] if found else None
