"""State of a run's jobs by one squeue call; scancel, release, limits; timeouts for all Slurm commands.

All clients are called with a timeout, because they block forever if the controller is down.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from hpcq.core.errors import SetupError
from hpcq.core.work import UnitState

CLIENT_TIMEOUT_S = 30.0

JOB_NAME_PREFIX = "hpcq"

Element = tuple[str, int]
"""Job id and array index. The index is 0 for a job that is not an array."""

# From the table "JOB STATE CODES" of squeue's manual. All other states are failures.
_STATES = {
    UnitState.PENDING: "PENDING CONFIGURING REQUEUED REQUEUE_HOLD REQUEUE_FED RESV_DEL_HOLD SPECIAL_EXIT",
    UnitState.RUNNING: "RUNNING COMPLETING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING",
    UnitState.DONE: "COMPLETED",
    UnitState.CANCELLED: "CANCELLED REVOKED",
}
_UNIT_STATES = {word: state for state, words in _STATES.items() for word in words.split()}

# "Field:|" prints a field at its full width; without a suffix squeue truncates to 20 characters. Free text is last.
_FIELDS = ("ArrayJobID", "ArrayTaskID", "State", "RestartCnt", "NodeList", "Reason", "Name", "Comment")


@dataclass(frozen=True, kw_only=True)
class QueueEntry:
    """One array element (or plain job) in the output of squeue.

    Attributes:
        slurm_state: Slurm's name of the state, for example OUT_OF_MEMORY.
        folder: Folder of the submission, from the job's comment.
    """

    state: UnitState
    slurm_state: str
    reason: str | None
    node: str | None
    restarts: int
    array: str
    part: int
    folder: str


def job_name(run: str, array: str, part: int) -> str:
    """Return the job name that identifies a submission in the queue. Names of runs and arrays have no colon."""
    return f"{JOB_NAME_PREFIX}:{run}:{array}:{part}"


def poll(run: str) -> dict[Element, QueueEntry]:
    """Return all elements of the run's arrays that Slurm still knows: pending, running, and recently ended ones.

    Runs of the same name in different folders are all listed; their job ids differ.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    fields = ",".join(f"{name}:|" for name in _FIELDS)
    listing = run_client(
        "squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", f"--Format={fields}"
    )
    return parse_queue(listing, run)


def parse_queue(listing: str, run: str) -> dict[Element, QueueEntry]:
    """Parse the output of squeue; jobs of other runs are skipped."""
    found = {}
    for line in listing.splitlines():
        job, index, slurm_state, restarts, node, reason, name, comment = line.strip().removesuffix("|").split("|", 7)
        prefix, _, rest = name.partition(":")
        of_run, _, rest = rest.partition(":")
        array, _, part = rest.rpartition(":")
        if (prefix, of_run) != (JOB_NAME_PREFIX, run) or not part.isdigit():
            continue
        found[job, int(index) if index.isdigit() else 0] = QueueEntry(
            state=_UNIT_STATES.get(slurm_state, UnitState.FAILED),
            slurm_state=slurm_state,
            reason=None if reason in ("", "None") else reason,
            node=node or None,
            restarts=int(restarts),
            array=array,
            part=int(part),
            folder=comment,
        )
    return found


def cancel(elements: Iterable[Element | str]) -> None:
    """Cancel elements, and whole jobs if only their id is given, by one call. Ended jobs are not affected.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    if arguments := _as_arguments(elements):
        run_client("scancel", "--quiet", *arguments)


def release(elements: Iterable[Element | str]) -> None:
    """Release held jobs by one call.

    Raises:
        SetupError: Slurm is missing, does not respond, or refuses for one of the jobs.
    """
    if arguments := _as_arguments(elements):
        run_client("scontrol", "release", ",".join(arguments))


def _as_arguments(elements: Iterable[Element | str]) -> list[str]:
    indices: dict[str, set[int]] = defaultdict(set)
    jobs = set()
    for element in elements:
        if isinstance(element, str):
            jobs.add(element)
        else:
            indices[element[0]].add(element[1])
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


def check_cluster() -> None:
    """Check that jobs can be submitted from this machine.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    require_clients()
    max_array_size()


def require_clients() -> None:
    """Check that sbatch and srun are installed on this machine.

    Raises:
        SetupError: They are not.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise SetupError(
            "sbatch or srun is missing on this machine: log in to the cluster, or use cluster.profile=local."
        )


def max_array_size() -> int:
    """Return the maximum number of elements of an array.

    Raises:
        SetupError: Slurm is missing or does not respond.
    """
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", run_client("scontrol", "show", "config"), re.MULTILINE)
    if found is None:
        raise SetupError("`scontrol show config` does not print MaxArraySize: check that it is Slurm's scontrol.")
    return max(1, int(found[1]))


def run_client(program: str, *arguments: str) -> str:
    """Run one of Slurm's clients and return its output.

    Raises:
        SetupError: The client is missing, does not respond in time, or fails. The message has its last line of output.
    """
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S, check=False
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
