"""Queries and changes of single jobs and nodes with scontrol, from inside a job (formats of Slurm 20.11 to 25.05)."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from hpcq.core.errors import SetupError
from hpcq.slurm.client import run_client
from hpcq.slurm.jobs import SlurmJob, SlurmState, element_id, parse_state
from hpcq.slurm.sinfo import is_in_service
from hpcq.slurm.squeue import JOB_ID, job_name_prefix, with_ranges

NO_NODES_LEFT = "node configuration is not available"
"""Part of sbatch's error message if the request excludes all nodes. sbatch has no exit code of its own for it."""

_DOWN = ("DOWN", "FAIL", "FAILING", "NOT_RESPONDING")

_NO_TIME = ("", "None", "N/A", "Unknown", "(null)")

_SIGNAL_BASE = 128
"""A shell reports a command that a signal ended as this number plus the signal."""


def current_job() -> SlurmJob:
    """Return the Slurm job of this process, from its environment variables."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return SlurmJob(
        job_id=element_id(array, os.environ["SLURM_ARRAY_TASK_ID"]) if array else os.environ["SLURM_JOB_ID"],
        state=SlurmState.RUNNING,
        restarts=_count(os.environ.get("SLURM_RESTART_COUNT", "")),
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


def show_array(job_id: str, timeout_s: float | None = None) -> dict[str, SlurmJob]:
    """Query a job, or all elements of an array, by job id; empty if Slurm no longer knows it.

    Raises:
        SlurmUnavailableError: Slurm does not respond, within `timeout_s` seconds if it is given.
        SetupError: Slurm is missing.
    """
    try:
        output = run_client("scontrol", "show", "job", "--oneliner", job_id, timeout_s=timeout_s)
    except SetupError as error:
        if "Invalid job id" in str(error):
            return {}
        raise
    return parse_array(output)


def parse_array(output: str) -> dict[str, SlurmJob]:
    """Parse the records of an array: one per element, and one for all pending elements ('ArrayTaskId=3-7,9%2')."""
    found = {}
    for line in output.splitlines():
        if not line.startswith("JobId="):
            continue
        job, listed = parse_job(line), re.search(r" ArrayTaskId=([\d,-]+)", line)
        array = job.job_id.partition("_")[0]
        for element in [f"{array}_{index}" for index in _indices(listed[1])] if listed else [job.job_id]:
            found[element] = replace(job, job_id=element)
    return found


def _indices(ranges: str) -> list[int]:
    """Return the numbers of '3-7,9'."""
    spans = [one.partition("-") for one in ranges.split(",") if one]
    return [index for first, _, last in spans for index in range(int(first), int(last or first) + 1)]


def parse_job(output: str) -> SlurmJob:
    """Parse the output of `scontrol show job --oneliner`."""
    # A name or a comment may contain what looks like a field: the first of a name counts, and JobId is the first.
    found: dict[str, str] = {}
    for key, value in re.findall(r"(?:^| )(\w+)=(\S*)", _record(output)):
        found.setdefault(key, value)
    code, _, number = found.get("ExitCode", "0:0").partition(":")
    state, reason = parse_state(found.get("JobState", ""), found.get("Reason", ""))
    nodes = found.get("NodeList", "")
    return SlurmJob(
        job_id=element_id(found.get("ArrayJobId") or found.get("JobId", ""), found.get("ArrayTaskId", "")),
        state=state,
        restarts=_count(found.get("Restarts", "")),
        reason=reason,
        node=None if nodes in ("", "(null)") else nodes,
        name=found.get("JobName", ""),
        partition=found.get("Partition", ""),
        end_time=_local_time(found.get("EndTime", "")),
        is_preempted=found.get("PreemptTime", "") not in _NO_TIME,
        exit_code=_count(code) or (_SIGNAL_BASE + _count(number) if _count(number) else 0),
    )


def _local_time(text: str) -> datetime | None:
    """Return a time; None if there is none, or in another format (Slurm built with --disable-iso8601)."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found.astimezone().replace(tzinfo=None) if found.tzinfo else found


def _count(text: str) -> int:
    return int(text) if text.isdecimal() else 0


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
    """Return the ids of the run's pending jobs in the partition; elements of an array are one id: '100_[3-7,9]'.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    # Without --array, squeue appends the throttle ('100_[3-7%2]'), which scontrol does not accept, and cuts a long list
    # of elements at 64 characters ('100_[1,3,…]', 22.05).
    options = ("--noheader", "--array", "--states=PENDING", f"--user={os.getuid()}", f"--partition={partition}")
    return parse_pending(run_client("squeue", *options, "--format=%i|%j"), run)


def parse_pending(listing: str, run: str) -> list[str]:
    """Return the ids of the run's jobs in the output of squeue, with the elements of each array as one id."""
    jobs = (line.strip().partition("|") for line in listing.splitlines())
    return with_ranges(job for job, _, name in jobs if name.startswith(job_name_prefix(run)) and JOB_ID.fullmatch(job))


def partition_nodes(partition: str | None) -> dict[str, bool]:
    """Return the names of the partition's nodes, or of all, and whether they are in service.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    options = [f"--partition={partition}"] if partition else []
    listing = run_client("sinfo", "--noheader", "--Node", *options, "--format=%N|%t")
    cells = (line.strip().partition("|") for line in listing.splitlines())
    return {node: is_in_service(state) for node, found, state in cells if found}


def is_down(node: str) -> bool:
    """Whether Slurm reports the node as down.

    Raises:
        SetupError: Slurm is missing, does not respond, or does not know the node.
    """
    # Not sinfo: it reports "completing" for a node that is down while a job is being ended there.
    return parse_is_down(run_client("scontrol", "show", "node", "--oneliner", node))


def parse_is_down(output: str) -> bool:
    """Whether a node in the output of `scontrol show node --oneliner` is down or failing, or does not respond.

    Its state is 'DOWN*+DRAIN', and from Slurm 21.08 on 'DOWN+DRAIN+NOT_RESPONDING'. A node in POWERED_DOWN is started
    when it has a job.
    """
    found = re.search(r"\bState=(\S+)", output)
    words = found[1].split("+") if found else []
    return any(word.endswith("*") or word in _DOWN for word in words)


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
