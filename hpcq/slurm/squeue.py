"""State of a run's jobs by one squeue call for any run size; cancel and release jobs."""

from __future__ import annotations

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

from hpcq.core.errors import SetupError
from hpcq.slurm.client import cluster_options, run_client
from hpcq.slurm.jobs import SlurmJob, element_id, parse_state

_JOB_NAME_PREFIX = "hpcq"

# "Field:|" prints a field at its full width; without a suffix squeue truncates to 20 characters. Free text is last.
_FIELDS = ("ArrayJobID", "ArrayTaskID", "State", "RestartCnt", "NodeList", "Reason", "Name", "Comment")

_ROW = (
    r"^ *(?P<array>\d+)\|(?P<index>[^|\n]*)\|(?P<state>\w+)\|(?P<restarts>\d+)\|(?P<nodes>[^|\n]*)"
    r"\|(?P<reason>[^\n]*?)\|(?P<name>{name}[^|\n]*)\|(?P<comment>[^\n]*?)\|? *$"
)
"""A row of a run whose job names begin with `name`: the fields above."""


_shared: ContextVar[dict[tuple[str, ...], str | SetupError] | None] = ContextVar("shared", default=None)
"""Within `shared_listing`: what squeue printed, or its error, by the options that select the cluster."""

JOB_ID = re.compile(r"\d+(_\d+)?")
"""A job, or an element of an array."""


def job_name(run: str, array: str, part: int) -> str:
    """Return the job name that identifies a submission in the queue. Names of runs and arrays have no colon."""
    return f"{job_name_prefix(run)}{array}:{part}"


def job_name_prefix(run: str) -> str:
    """Return what the names of all jobs of the run begin with."""
    return f"{_JOB_NAME_PREFIX}:{run}:"


def poll(run: str, timeout_s: float | None = None) -> dict[str, SlurmJob]:
    """Return all jobs of the run that Slurm still knows, by job id: pending, running, and recently ended ones.

    Each element of an array is a job. Runs of the same name in different folders are all listed; their job ids differ.

    Raises:
        SlurmUnavailableError: Slurm does not respond, within `timeout_s` seconds if it is given.
        SetupError: Slurm is missing.
    """
    return parse_queue(_listing(timeout_s), run)


@contextlib.contextmanager
def shared_listing() -> Iterator[None]:
    """Let all polls in the block, of several runs, share one call per cluster, and the error if it fails."""
    token = _shared.set({})
    try:
        yield
    finally:
        _shared.reset(token)


def _listing(timeout_s: float | None) -> str:
    """Return squeue's list of this user's jobs."""
    fields = ",".join(f"{name}:|" for name in _FIELDS)
    options = ("--noheader", "--array", "--states=all", f"--user={os.getuid()}", f"--Format={fields}")
    shared = _shared.get()
    if shared is None:
        return run_client("squeue", *options, timeout_s=timeout_s)
    key = cluster_options()
    if key not in shared:
        try:
            shared[key] = run_client("squeue", *options, timeout_s=timeout_s)
        except SetupError as error:
            shared[key] = error
    found = shared[key]
    if isinstance(found, SetupError):
        raise found
    return found


def parse_queue(listing: str, run: str) -> dict[str, SlurmJob]:
    """Parse the output of squeue; jobs of other runs and lines that are not rows are skipped.

    A name or a comment of another job may have line breaks and separators, and with several clusters there are
    headings.
    """
    rows = re.compile(_ROW.format(name=re.escape(job_name_prefix(run))), re.MULTILINE)
    found = {}
    for row in rows.finditer(listing):
        job_id, (state, reason) = element_id(row["array"], row["index"]), parse_state(row["state"], row["reason"])
        found[job_id] = SlurmJob(
            job_id=job_id,
            state=state,
            restarts=int(row["restarts"]),
            reason=reason,
            node=row["nodes"] or None,
            name=row["name"],
            comment=row["comment"],
        )
    return found


def count_jobs() -> int:
    """Count all pending and running jobs of this user, as limits on submitted jobs do: each element of an array.

    Raises:
        SlurmUnavailableError: Slurm does not respond.
        SetupError: Slurm is missing.
    """
    listing = run_client("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i")
    return sum(JOB_ID.fullmatch(line.strip()) is not None for line in listing.splitlines())


def cancel(job_ids: Iterable[str], *, only_pending: bool = False) -> None:
    """Cancel jobs and elements of arrays ('100_7') by one call. Ended jobs are not affected.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    if arguments := with_ranges(job_ids):
        run_client("scancel", "--quiet", *(["--state=PENDING"] if only_pending else []), *arguments)


def release(job_ids: Iterable[str]) -> None:
    """Release held jobs and elements of arrays by one call.

    Raises:
        SetupError: Slurm is missing, does not respond, or refuses for one of the jobs.
    """
    if arguments := with_ranges(job_ids):
        run_client("scontrol", "release", ",".join(arguments))


def with_ranges(job_ids: Iterable[str]) -> list[str]:
    """Return the ids of jobs with the elements of each array as one id: '100_[1-3,7]'."""
    indices: dict[str, set[int]] = defaultdict(set)
    jobs = set()
    for job_id in job_ids:
        array, _, index = job_id.partition("_")
        if index:
            indices[array].add(int(index))
        else:
            jobs.add(job_id)
    return sorted(jobs) + [f"{job}_[{_ranges(numbers)}]" for job, numbers in sorted(indices.items()) if job not in jobs]


def _ranges(numbers: Iterable[int]) -> str:
    """Format {1, 2, 3, 7} as '1-3,7'."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
