"""The system that faults are injected into: cluster, jobs, processes and files of a run, and pending undo actions."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcq.core.paths import RunLayout
from tests.command_line import CommandResult, Hpcq
from tests.slurm.cluster import VirtualCluster

LogEvent = Callable[..., None]
"""Writes an event to the campaign's log: its name, then its fields as keywords."""

ACTIVE_STATES = (
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "SIGNALING",
)  # fmt: skip
COMMAND_TIMEOUT_S = 600.0
CONTROLLER = "slurmctld"
USER_INPUT_ERROR, ENVIRONMENT_ERROR = 2, 3
"""Exit codes of refused commands: invalid input; environment (full disk, no Slurm, run locked by another command)."""

_FIELDS = ("JobID", "ArrayJobID", "ArrayTaskID", "State", "RestartCnt", "NodeList", "Reason", "Name", "Comment")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job of the run.

    Attributes:
        id: Slurm's id of this array task alone.
        element: Array task as Slurm prints it, e.g. 7_3.
        state: State from squeue.
        restarts: Number of requeues.
        node: Name of its node.
        reason: Reason from squeue.
        array: Name of the array in hpcq's plan.
        folder: folder of the submission.
    """

    id: str
    element: str
    state: str
    restarts: int
    node: str
    reason: str
    array: str
    folder: Path

    @property
    def is_merge(self) -> bool:
        """Whether it is the merge job. It is the run's last job: if it dies, only the user can continue the run."""
        return self.array.startswith("merge")


@dataclass(frozen=True, kw_only=True)
class _Undo:
    due_s: float
    fault: str
    undo: Callable[[], object]


@dataclass(kw_only=True)
class SystemUnderTest:
    """A run, its cluster and what has been done to them. One per trial.

    Attributes:
        cluster: The virtual cluster.
        hpcq: hpcq's command line.
        layout: Paths of the run.
        random: Source of all random choices of the trial.
        log: Writes events.
        small_disk: Mount point of the run folder's own small file system. None: there is none.
        clock_offset_file: File with the offset of the workers' wall clocks. None: they have the host's clock.
        damaged_requests: Keys of requests that must be answered again, because their segment was damaged.
        damaged_segments: These segments, named as in the merge's report.
        disk_full_periods_s: Start and end of each full disk, by the monotonic clock.
        intervention_reasons: Why the run may need its user.
        output_errors: Tracebacks and unexpected exit codes of commands.
        duplicate_jobs: Processes of jobs that were started a second time.
    """

    cluster: VirtualCluster
    hpcq: Hpcq
    layout: RunLayout
    random: random.Random
    log: LogEvent
    small_disk: Path | None = None
    clock_offset_file: Path | None = None
    damaged_requests: set[str] = field(default_factory=set)
    damaged_segments: set[str] = field(default_factory=set)
    disk_full_periods_s: list[tuple[float, float]] = field(default_factory=list)
    intervention_reasons: list[str] = field(default_factory=list)
    output_errors: list[str] = field(default_factory=list)
    duplicate_jobs: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _undos: list[_Undo] = field(default_factory=list)

    def slurm(self, *command: str) -> str | None:
        """Return the output of a Slurm command; None: it failed, or the controller does not respond."""
        if not self.cluster.is_running(CONTROLLER):
            return None  # a command would retry for ten seconds, which would delay injections and undo actions
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            return self.cluster.call(*command)
        return None

    def jobs(self, *states: str) -> list[Job] | None:
        """Return the run's jobs in one of `states`; None: the controller does not respond."""
        format_fields = ",".join(f"{name}:|" for name in _FIELDS)
        listing = self.slurm("squeue", "--noheader", "--array", "--states=all", f"--Format={format_fields}")
        if listing is None:
            return None
        jobs = []
        for line in listing.splitlines():
            fields = line.strip().removesuffix("|").split("|", 8)
            job, array, index, state, restarts, node, reason, name, folder = fields
            if name.startswith(f"hpcq:{self.layout.name}:") and state in states:
                jobs.append(
                    Job(
                        id=job,
                        element=f"{array}_{index}" if index.isdigit() else array,
                        state=state,
                        restarts=int(restarts),
                        node=node,
                        reason=reason,
                        array=name.split(":")[2],
                        folder=Path(folder),
                    )
                )
        return jobs

    def pick_job(self, *states: str, merges: bool = True) -> Job | None:
        """Return a random job of the run in one of `states` (default: running); None: there is none.

        Args:
            states: Slurm's job states.
            merges: Whether the merge job can be picked.
        """
        jobs = [job for job in self.jobs(*(states or ("RUNNING",))) or () if merges or not job.is_merge]
        return self.random.choice(jobs) if jobs else None

    def find_pid(self, job: Job, role: str) -> int | None:
        """Return the process id of a job's worker, srun, batch shell, step or batch step; None: it does not run."""
        return self.pids_by_role(job).get(role)

    def pids_by_role(self, job: Job) -> dict[str, int]:
        """Return the processes of `job` that run."""
        return {role: pid for pid, role in self._processes_of(job)}

    def _processes_of(self, job: Job) -> Iterator[tuple[int, str]]:
        of_cluster, of_job = f"SLURM_CONF={self.cluster.configuration}", f"SLURM_JOB_ID={job.id}"
        titles = {f"slurmstepd: [{job.id}.0]": "step", f"slurmstepd: [{job.id}.batch]": "batch step"}
        for pid, arguments, variables in processes():
            if of_cluster not in variables:
                continue
            role = titles.get(" ".join(arguments).strip())
            if role is None and of_job in variables:
                role = _role(arguments)
            if role:
                yield pid, role

    def run_command(
        self, *arguments: str, expected_codes: Collection[int] = (0, 1, ENVIRONMENT_ERROR), **options: Any
    ) -> CommandResult:
        """Run an hpcq command, log it and check its output."""
        started_s = time.monotonic()
        result = self.hpcq(*arguments, timeout_s=COMMAND_TIMEOUT_S, env=self.cluster.environment(), **options)
        self.check_output(arguments, result.code, result.out + result.err, expected_codes)
        last = (result.err.strip() or result.out.strip()).splitlines()[-1:]
        self.log(
            "command",
            arguments=arguments,
            code=result.code,
            seconds=round(time.monotonic() - started_s, 2),
            last_line=last,
        )
        return result

    def check_output(
        self, arguments: Collection[str], code: int | None, output: str, expected_codes: Collection[int]
    ) -> None:
        """Record a traceback or an unexpected exit code. Both are failures of hpcq under every fault."""
        if "Traceback (most recent call last)" in output:
            self.output_errors.append(f"{' '.join(arguments)}: {output[-3000:]}")
        elif code not in expected_codes:
            self.output_errors.append(f"{' '.join(arguments)}: exit code {code}: {output[-3000:]}")

    def schedule_undo(self, fault: str, undo: Callable[[], object], *, within_s: tuple[float, float]) -> None:
        """Undo a fault after a random time within these bounds, and always before the trial is checked."""
        due_s = time.monotonic() + self.random.uniform(*within_s)
        self._undos.append(_Undo(due_s=due_s, fault=fault, undo=undo))

    def undo_due(self, *, force: bool = False) -> bool:
        """Undo the faults that are due, or all with `force`; return whether some remain."""
        for item in [item for item in self._undos if force or item.due_s <= time.monotonic()]:
            self._undos.remove(item)
            item.undo()
            self.log("undone", fault=item.fault)
        return bool(self._undos)

    def expect_intervention(self, reason: str) -> None:
        """Record why the run may need its user."""
        self.intervention_reasons.append(reason)

    def send_signal(self, pid: int | None, number: signal.Signals) -> bool:
        """Send a signal; return False if the process does not exist."""
        try:
            if pid is not None:
                os.kill(pid, number)
        except ProcessLookupError:
            return False
        return pid is not None

    def segments(self) -> list[Path]:
        """Return the committed segments."""
        return sorted(path for path in self.layout.segments.glob("*/*.h5") if not path.name.startswith("."))


def processes() -> Iterator[tuple[int, list[str], list[str]]]:
    """Yield id, arguments and environment of every process that this user may inspect."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            yield int(entry.name), arguments, variables


def _role(arguments: list[str]) -> str | None:
    if any(argument.endswith("slurm_script") for argument in arguments):
        return "batch shell"
    if Path(arguments[0]).name == "srun":
        return "srun"
    return "worker" if "hpcq.launch.job" in arguments else None
