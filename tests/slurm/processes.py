"""Processes of a job on this host, which runs all virtual nodes: batch shell, srun, slurmstepd."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from hpcq.slurm.client import run_client


def batch_shell(job_id: str) -> int:
    """Return the process of the shell that runs the job's batch script."""
    script = f"/job{int(numeric_job_id(job_id)):05d}/slurm_script"
    return next(process for process, command in commands() if script in command and command.startswith("/bin/bash"))


def srun_processes(job_id: str) -> list[int]:
    """Return the srun processes that the batch shell waits for."""
    shell = batch_shell(job_id)
    return [process for process, command in commands() if command.startswith("srun ") and _parent(process) == shell]


def step_daemon(job_id: str) -> int:
    """Return the slurmstepd of the job's first step."""
    name = f"slurmstepd: [{numeric_job_id(job_id)}.0]"
    return next(process for process, command in commands() if command.startswith(name))


def numeric_job_id(job_id: str) -> str:
    """Return the numeric job id that the daemons use; each element of an array has its own."""
    return re.findall(r"JobId=(\d+)", run_client("scontrol", "show", "job", "--oneliner", job_id))[0]


def job_processes(job_id: str) -> list[tuple[int, dict[str, str]]]:
    """Return all processes of the job's tasks with their environments, including detached ones."""
    conf, found = f"SLURM_CONF={os.environ['SLURM_CONF']}", []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            if conf in variables and f"SLURM_JOB_ID={job_id}" in variables and (entry / "cmdline").read_bytes():
                found.append((int(entry.name), dict(one.split("=", 1) for one in variables if "=" in one)))
    return [one for one in found if "SLURM_PROCID" in one[1]]


def commands() -> Iterator[tuple[int, str]]:
    """Yield every process of this host and its command line."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
