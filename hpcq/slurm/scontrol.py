"""One job at a time: what Slurm says of it and of its nodes, and orders for it; for jobs that look after themselves.

Knows scontrol, sinfo and the words that they print (Slurm 22.05). Whether an order is right is the caller's to know.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hpcq.core.errors import SetupError
from hpcq.slurm.squeue import JOB_NAME_PREFIX, call

NO_SUCH_NODES = "node configuration is not available"
"""sbatch's words where the request leaves no node at all."""

_SIGNALLED = 128
"""What a shell adds to the number of the signal that ended a command."""


@dataclass(frozen=True, kw_only=True)
class JobDetails:
    """What Slurm says of one job.

    state: its word; COMPLETING hides what the job has become. ends: as the node's clock tells time (None: not known).
    is_preempted: it runs in the grace time of a preemption. exit_code: of its batch script, as a shell would tell it.
    """

    state: str
    restarts: int
    ends: datetime | None
    is_preempted: bool
    partition: str
    exit_code: int


def show_job(job_id: str) -> JobDetails | None:
    """What Slurm says of a job or an element of an array ('100_7'); None: it knows the job no more.

    An element must be named so: its own number may be that of the whole array (SLURM_JOB_ID of the last one is).

    Raises:
        SetupError: there is no Slurm, or it does not answer.
    """
    try:
        told = call("scontrol", "show", "job", "--oneliner", job_id)
    except SetupError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    return read_job(told)


def read_job(told: str) -> JobDetails:
    """`show_job`'s answer from what scontrol printed."""
    found = dict(re.findall(r"(\w+)=(\S*)", told.partition("\n")[0]))
    code, _, number = found.get("ExitCode", "0:0").partition(":")
    ends = found.get("EndTime", "Unknown")
    return JobDetails(
        state=found.get("JobState", ""),
        restarts=int(found.get("Restarts", 0)),
        ends=None if ends == "Unknown" else datetime.fromisoformat(ends),
        is_preempted=found.get("PreemptTime", "None") != "None",
        partition=found.get("Partition", ""),
        exit_code=int(code) or (_SIGNALLED + int(number) if int(number or 0) else 0),
    )


def requeue(job_id: str) -> None:
    """Have a job, or an element of an array, ended and queued again.

    Raises:
        SetupError: there is no Slurm, it does not answer, or it refuses.
    """
    call("scontrol", "requeue", job_id)


def change(job_ids: str, **fields: str) -> None:
    """Change fields of jobs that wait (`job_ids` as squeue lists them, with commas between).

    Raises:
        SetupError: there is no Slurm, it does not answer, or it refuses for one of them.
    """
    call("scontrol", "update", f"JobId={job_ids}", *(f"{name}={value}" for name, value in fields.items()))


def waiting(run: str, partition: str) -> list[str]:
    """Jobs of the run that wait for that partition, an array as one: '100_[3-7]'.

    Raises:
        SetupError: there is no Slurm, or it does not answer.
    """
    words = ("--noheader", "--states=PENDING", f"--user={os.getuid()}", f"--partition={partition}")
    listing = call("squeue", *words, "--format=%i|%j")
    jobs = (line.strip().partition("|") for line in listing.splitlines())
    # squeue tells the throttle, too ('100_[3-7%2]'), which scontrol does not understand (22.05).
    return [re.sub(r"%\d+", "", job) for job, _, name in jobs if name.startswith(f"{JOB_NAME_PREFIX}:{run}:")]


def nodes_of(partition: str | None) -> set[str]:
    """Names of the partition's nodes; of all nodes where no partition is given.

    Raises:
        SetupError: there is no Slurm, or it does not answer.
    """
    which = [f"--partition={partition}"] if partition else []
    return set(call("sinfo", "--noheader", "--Node", *which, "--format=%N").split())


def is_down(node: str) -> bool:
    """Whether Slurm says that the node is not there.

    Raises:
        SetupError: there is no Slurm, it does not answer, or it has no such node.
    """
    # Not sinfo: while a job is still being ended there it says "completing" of a node that is down.
    state = re.search(r"\bState=(\S+)", call("scontrol", "show", "node", "--oneliner", node))
    return state is not None and any(word in state[1] for word in ("DOWN", "FAIL", "NOT_RESPONDING", "*"))


def could_start(script: Path, exclude: str) -> bool:
    """Whether a submitted batch script would find nodes beside those in `exclude`.

    Raises:
        SetupError: there is no Slurm, or it does not answer.
    """
    try:
        call("sbatch", "--test-only", f"--exclude={exclude}", str(script))
    except SetupError as error:
        return NO_SUCH_NODES not in str(error)
    return True
