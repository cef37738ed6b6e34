"""Processes of a job on this host, which runs all virtual nodes: batch shell, srun, slurmstepd.

Job ids are not unique on a host: another cluster, of another checkout, may have a job with the same id. Only processes
with this cluster's SLURM_CONF are considered.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpcq.slurm.client import run_client


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process of the cluster that SLURM_CONF points to.

    Attributes:
        pid: Its id.
        command: Its command line, or the title that it has set.
        variables: Its environment.
    """

    pid: int
    command: str
    variables: dict[str, str]


def batch_shell(job_id: str) -> int:
    """Return the process of the shell that runs the job's batch script."""
    script = f"/job{int(numeric_job_id(job_id)):05d}/slurm_script"
    return next(one.pid for one in processes() if script in one.command and one.command.startswith("/bin/bash"))


def srun_processes(job_id: str) -> list[int]:
    """Return the srun processes that the batch shell waits for."""
    shell = batch_shell(job_id)
    return [one.pid for one in processes() if one.command.startswith("srun ") and _parent(one.pid) == shell]


def step_daemon(job_id: str) -> int:
    """Return the slurmstepd of the job's first step."""
    name = f"slurmstepd: [{numeric_job_id(job_id)}.0]"
    return next(one.pid for one in processes() if one.command.startswith(name))


def numeric_job_id(job_id: str) -> str:
    """Return the numeric job id that the daemons use; each element of an array has its own."""
    return re.findall(r"JobId=(\d+)", run_client("scontrol", "show", "job", "--oneliner", job_id))[0]


def job_processes(job_id: str) -> list[Process]:
    """Return all processes of the job's tasks, including detached ones."""
    return [
        one
        for one in processes()
        if one.command and one.variables.get("SLURM_JOB_ID") == job_id and "SLURM_PROCID" in one.variables
    ]


def processes() -> Iterator[Process]:
    """Yield every process of the cluster."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            variables = dict(word.split("=", 1) for word in words if "=" in word)
            if variables.get("SLURM_CONF") == os.environ["SLURM_CONF"]:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                yield Process(pid=int(entry.name), command=command, variables=variables)


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
