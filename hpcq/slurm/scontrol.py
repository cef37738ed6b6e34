"""Queries and changes of single jobs and nodes with scontrol, from inside a job (formats of Slurm 22.05)."""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path

from hpcq.core.errors import SetupError
from hpcq.slurm.client import run_client
from hpcq.slurm.jobs import SlurmJob, SlurmState, element_id, parse_state
from hpcq.slurm.squeue import job_name_prefix

NO_NODES_LEFT = "node configuration is not available"
"""Part of sbatch's error message if the request excludes all nodes. sbatch has no exit code of its own for it."""

_SIGNAL_BASE = 128
"""A shell reports a command that a signal ended as this number plus the signal."""


def current_job() -> SlurmJob:
    """Return the Slurm job of this process, from its environment variables."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return SlurmJob(
        job_id=element_id(array, os.environ["SLURM_ARRAY_TASK_ID"]) if array else os.environ["SLURM_JOB_ID"],
        state=SlurmState.RUNNING,
        restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        node=os.environ.get("SLURMD_NODENAME"),
        partition=os.environ.get("SLURM_JOB_PARTITION", ""),
    )


def show_job(job_id: str) -> SlurmJob | None:
    """Query a job, or an element of an array ('100_7'); return None if Slurm no longer knows the job.

    An element needs this form: its own job id can be that of the whole array (SLURM_JOB_ID of the last element is).

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    try:
        output = run_client("scontrol", "show", "job", "--oneliner", job_id)
    except SetupError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    return parse_job(output)


def parse_job(output: str) -> SlurmJob:
    """Parse the output of `scontrol show job --oneliner`."""
    # A name or a comment may contain what looks like a field: the first of a name counts, and JobId is the first.
    found: dict[str, str] = {}
    for key, value in re.findall(r"(?:^| )(\w+)=(\S*)", _record(output)):
        found.setdefault(key, value)
    code, _, number = found.get("ExitCode", "0:0").partition(":")
    end_time = found.get("EndTime", "Unknown")
    state, reason = parse_state(found.get("JobState", ""), found.get("Reason", ""))
    nodes = found.get("NodeList", "")
    return SlurmJob(
        job_id=element_id(found.get("ArrayJobId") or found.get("JobId", ""), found.get("ArrayTaskId", "")),
        state=state,
        restarts=int(found.get("Restarts", 0)),
        reason=reason,
        node=None if nodes in ("", "(null)") else nodes,
        partition=found.get("Partition", ""),
        end_time=None if end_time == "Unknown" else datetime.fromisoformat(end_time),
        is_preempted=found.get("PreemptTime", "None") != "None",
        exit_code=int(code) or (_SIGNAL_BASE + int(number) if int(number or 0) else 0),
    )


def _record(output: str) -> str:
    """Return the line of a job's record; a site may print others before it."""
    return next((line for line in output.splitlines() if line.startswith("JobId=")), "")


def requeue(job_id: str) -> None:
    """Requeue a running job, or an element of an array.

    Raises:
        SetupError: Slurm is missing, does not respond, or refuses.
    """
    run_client("scontrol", "requeue", job_id)


def update_jobs(job_ids: str, **fields: str) -> None:
    """Change fields of pending jobs (`job_ids` as squeue lists them, separated by commas).

    Raises:
        SetupError: Slurm is missing, does not respond, or refuses for one of the jobs.
    """
    run_client("scontrol", "update", f"JobId={job_ids}", *(f"{name}={value}" for name, value in fields.items()))


def pending_jobs(run: str, partition: str) -> list[str]:
    """Return the ids of the run's pending jobs in the partition; an array is one id: '100_[3-7]'.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    options = ("--noheader", "--states=PENDING", f"--user={os.getuid()}", f"--partition={partition}")
    listing = run_client("squeue", *options, "--format=%i|%j")
    jobs = (line.strip().partition("|") for line in listing.splitlines())
    # squeue appends the throttle ('100_[3-7%2]'), which scontrol does not accept (22.05).
    return [re.sub(r"%\d+", "", job) for job, _, name in jobs if name.startswith(job_name_prefix(run))]


def partition_nodes(partition: str | None) -> set[str]:
    """Return the names of the partition's nodes; of all nodes if `partition` is None.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    options = [f"--partition={partition}"] if partition else []
    return set(run_client("sinfo", "--noheader", "--Node", *options, "--format=%N").split())


def is_down(node: str) -> bool:
    """Whether Slurm reports the node as down.

    Raises:
        SetupError: Slurm is missing, does not respond, or does not know the node.
    """
    # Not sinfo: it reports "completing" for a node that is down while a job is being ended there.
    state = re.search(r"\bState=(\S+)", run_client("scontrol", "show", "node", "--oneliner", node))
    return state is not None and any(word in state[1] for word in ("DOWN", "FAIL", "NOT_RESPONDING", "*"))


def can_start(script: Path, exclude: str) -> bool:
    """Whether nodes other than those in `exclude` could run a submitted batch script.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    try:
        run_client("sbatch", "--test-only", f"--exclude={exclude}", str(script))
    except SetupError as error:
        return NO_NODES_LEFT not in str(error)
    return True
