"""Environment of Slurm's clients and jobs: this process's variables without those that are options of the clients.

Requests to Slurm depend on the plan and the cluster profile alone, not on the shell or the job
that runs hpcq. The input variables are those of the manual pages of sbatch, salloc, srun, squeue, sinfo, scontrol,
scancel and sacct.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

_PREFIXES = (
    "SACCT_",
    "SALLOC_",
    "SBATCH_",
    "SCANCEL_",
    "SCONTROL_",
    "SINFO_",
    "SLURM_",
    "SLURMD_",
    "SPRIO_",
    "SQUEUE_",
    "SRUN_",
    "SUBMITIT_",
)

_FINDS_THE_CLUSTER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")
"""Where the clients find the configuration, and the token with which they log in to the controller."""


def client_environment(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return `variables` for a call of one of Slurm's clients; sbatch passes them on to the job."""
    return {
        name: value for name, value in variables.items() if name in _FINDS_THE_CLUSTER or not name.startswith(_PREFIXES)
    }


def sbatch_options(variables: Mapping[str, str] = os.environ) -> frozenset[str]:
    """Return the names of the variables that are options of sbatch, which `client_environment` removes."""
    return frozenset(name for name in variables if name.startswith("SBATCH_"))
