"""What Slurm says of a run, in one call whatever the run's size; and the other questions and orders for its clients.

Knows squeue, scancel and scontrol, each called with a timeout, since they wait for ever on a sick cluster. Knows
neither plan nor store.
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
from hpcq.core.work import State

CLIENT_TIMEOUT_S = 30.0

JOB_NAME_PREFIX = "hpcq"

Element = tuple[str, int]
"""Job id and index in the array; the index of a job that is no array is 0."""

# The words stand in the table "JOB STATE CODES" of squeue's manual. A state that is not here is a failure.
_STATES = {
    State.PENDING: "PENDING CONFIGURING REQUEUED REQUEUE_HOLD REQUEUE_FED RESV_DEL_HOLD SPECIAL_EXIT",
    State.RUNNING: "RUNNING COMPLETING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING",
    State.DONE: "COMPLETED",
    State.CANCELLED: "CANCELLED REVOKED",
}
_STATE_OF = {word: state for state, words in _STATES.items() for word in words.split()}

# "Field:|" prints a field at its full width; without a suffix squeue cuts at 20 characters. Free text comes last.
_FIELDS = ("ArrayJobID", "ArrayTaskID", "State", "RestartCnt", "NodeList", "Reason", "Name", "Comment")


@dataclass(frozen=True, kw_only=True)
class JobState:
    """One element of an array. slurm_state: Slurm's own word, e.g. OUT_OF_MEMORY. folder: that of its submission."""

    state: State
    slurm_state: str
    reason: str | None
    node: str | None
    restarts: int
    array: str
    part: int
    folder: str


def job_name(run: str, array: str, part: int) -> str:
    """The name under which a submission can be found again in the queue; no run or array has a colon in its name."""
    return f"{JOB_NAME_PREFIX}:{run}:{array}:{part}"


def poll(run: str) -> dict[Element, JobState]:
    """Every element of the run's arrays that Slurm still knows: those that wait or run, and those that ended of late.

    Two runs of one name in different folders are both listed; job ids tell them apart.

    Raises:
        SetupError: there is no Slurm, or it does not answer.
    """
    fields = ",".join(f"{name}:|" for name in _FIELDS)
    listing = call("squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", f"--Format={fields}")
    return read_queue(listing, run)


def read_queue(listing: str, run: str) -> dict[Element, JobState]:
    """`poll`'s answer from what squeue printed."""
    found = {}
    for line in listing.splitlines():
        job, index, word, restarts, node, reason, name, comment = line.strip().removesuffix("|").split("|", 7)
        prefix, _, rest = name.partition(":")
        of_run, _, rest = rest.partition(":")
        array, _, part = rest.rpartition(":")
        if (prefix, of_run) != (JOB_NAME_PREFIX, run) or not part.isdigit():
            continue
        found[job, int(index) if index.isdigit() else 0] = JobState(
            state=_STATE_OF.get(word, State.FAILED),
            slurm_state=word,
            reason=None if reason in ("", "None") else reason,
            node=node or None,
            restarts=int(restarts),
            array=array,
            part=int(part),
            folder=comment,
        )
    return found


def cancel(elements: Iterable[Element | str]) -> None:
    """Cancel elements, and whole jobs where only their id is given, by one call; those that have ended are left alone.

    Raises:
        SetupError: there is no Slurm, or it does not answer.
    """
    if arguments := _as_arguments(elements):
        call("scancel", "--quiet", *arguments)


def release(elements: Iterable[Element | str]) -> None:
    """Let jobs start that Slurm holds, by one call.

    Raises:
        SetupError: there is no Slurm, it does not answer, or it refuses for one of them.
    """
    if arguments := _as_arguments(elements):
        call("scontrol", "release", ",".join(arguments))


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
    """{1, 2, 3, 7} as '1-3,7'."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def check_cluster() -> None:
    """See that jobs can be submitted from here.

    Raises:
        SetupError: there is no Slurm, or it does not answer.
    """
    require_clients()
    max_array_size()


def require_clients() -> None:
    """See that this machine has what submits jobs.

    Raises:
        SetupError: it has not.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise SetupError("There is no sbatch on this machine: log in to the cluster, or use cluster.profile=local.")


def max_array_size() -> int:
    """The most elements that an array may have.

    Raises:
        SetupError: there is no Slurm, or it does not answer.
    """
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"), re.MULTILINE)
    if found is None:
        raise SetupError("`scontrol show config` names no MaxArraySize: is this Slurm?")
    return max(1, int(found[1]))


def call(program: str, *arguments: str) -> str:
    """What one of Slurm's clients prints.

    Raises:
        SetupError: it is not there, it does not answer in time, or it fails; the sentence has its last words.
    """
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise SetupError(
            f"There is no {program} on this machine: log in to the cluster, or use cluster.profile=local."
        ) from None
    except subprocess.TimeoutExpired:
        raise SetupError(
            f"Slurm did not answer `{program}` within {CLIENT_TIMEOUT_S:g} s: try again, or ask the administrators."
        ) from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise SetupError(f"`{program}` failed: {said}")
    return done.stdout
