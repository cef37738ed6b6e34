"""Run a Slurm command with a timeout and clear errors; facts about the whole cluster (name, MaxArraySize).

All clients are called with a timeout, because they block forever if the controller is down.
"""

from __future__ import annotations

import re
import shutil
import subprocess

from hpcq.core.errors import SetupError
from hpcq.slurm.environment import client_environment

CLIENT_TIMEOUT_S = 30.0


def run_client(program: str, *arguments: str) -> str:
    """Run one of Slurm's clients and return its output.

    Raises:
        SetupError: The client is missing, does not respond in time, or fails. The message has its last line of output.
    """
    try:
        done = subprocess.run(
            [program, *arguments],
            capture_output=True,
            text=True,
            errors="replace",  # names and comments of other users' jobs
            timeout=CLIENT_TIMEOUT_S,
            check=False,
            env=client_environment(),
        )
    except FileNotFoundError:
        raise SetupError(
            f"{program} is missing on this machine: log in to the cluster, or use cluster.profile=local."
        ) from None
    except subprocess.TimeoutExpired:
        raise SetupError(
            f"`{program}` got no response from Slurm within {CLIENT_TIMEOUT_S:g} s. Try again, or ask the"
            " administrators."
        ) from None
    if done.returncode:
        message = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise SetupError(f"`{program}` failed: {message}")
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
