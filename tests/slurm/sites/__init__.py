"""Programs that imitate other sites' Slurm: a folder per site, with the clients that its PATH has first.

The shell at such a site has all variables of Slurm's manual pages set to something misleading.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

SITES = Path(__file__).resolve().parent

FINDS_THE_CLUSTER = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"}
OF_THE_PROFILE = {"SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS", "SBATCH_RESERVATION"}
"""Variables that count where the profile has no value."""

CLIENTS = ("sbatch", "srun", "salloc", "squeue", "sinfo", "scontrol", "scancel", "sacct")
VARIABLE = re.compile(
    rb"\b(?:SACCT|SALLOC|SBATCH|SCANCEL|SCONTROL|SINFO|SLURM|SLURMD|SQUEUE|SRUN)_[A-Z_]+[A-Z](?=\x00)"
)

OBSERVED = {
    "SBATCH_MEM_PER_NODE": "64M",
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_JOB_NAME": "mine",
    "SBATCH_EXPORT": "NONE",
    "SQUEUE_PARTITION": "h100",
    "SQUEUE_STATES": "SUSPENDED",
    "SLURM_TIME_FORMAT": "relative",
    "SLURM_MEM_PER_CPU": "100",
    "SLURM_JOB_ID": "1",
    "SLURM_ARRAY_JOB_ID": "1",
    "SLURM_ARRAY_TASK_ID": "7",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SUBMITIT_EXECUTOR": "slurm",
}
"""Variables with which a run went wrong. Observed: other memory and limits than planned, all units submitted twice."""


def misleading_variables() -> dict[str, str]:
    """Return the variables of the manual pages and of the installed clients, with values that break their calls."""
    lines = (SITES / "variables.txt").read_text(encoding="ascii").splitlines()
    documented = {line for line in lines if not line.startswith("#")}
    installed = {
        name.decode() for client in CLIENTS for name in VARIABLE.findall(Path(str(shutil.which(client))).read_bytes())
    }
    assert {"SBATCH_MEM_PER_NODE", "SQUEUE_PARTITION", "SLURM_JOB_ID"} <= documented & installed
    names = (documented | installed) - FINDS_THE_CLUSTER - OF_THE_PROFILE
    return {**dict.fromkeys(names, "no-such-thing"), **OBSERVED}


def enter_site(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Put the clients of a site first in PATH, and set all misleading variables."""
    folder = SITES / name
    assert folder.is_dir(), folder
    variables = misleading_variables()  # of the real clients, before a site's are found
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
