"""What a fault meets: the cluster, the run's jobs, their processes and files; and what must be undone after a while.

Knows Slurm's clients and /proc. Knows nothing of which faults there are, nor of what a run must look like in the end.
"""

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

Tell = Callable[..., None]
"""Writes a line of the campaign's log: what it is about, and its fields."""

LIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "SIGNALING")
COMMAND_TIMEOUT_S = 600.0
CONTROLLER = "slurmctld"
USER_INPUT, REFUSED = 2, 3
"""Exit codes of commands that are refused: by what is asked, and by the environment (full disk, no Slurm, held run)."""

_FIELDS = ("JobID", "ArrayJobID", "ArrayTaskID", "State", "RestartCnt", "NodeList", "Reason", "Name", "Comment")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job of the run. id: Slurm's number of it alone. element: as Slurm writes it, e.g. 7_3. folder: submitit's."""

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
        """Whether it is the run's last job, after which nobody looks after the run but its user."""
        return self.array.startswith("merge")


@dataclass(frozen=True, kw_only=True)
class _Undo:
    due_s: float
    what: str
    undo: Callable[[], object]


@dataclass(kw_only=True)
class Scene:
    """A round while it goes on.

    small_disk: the file system of the run's folder, where it is one of its own. clock: the file that tells the workers'
    clocks how much they are wrong, where they have such clocks. forgiven: keys of requests that must be answered again,
    because what held the answers was damaged. damaged: those files, as the merge names them. full: when the disk was
    full, by the monotonic clock. user_is_called: why this round cannot end without its user.
    """

    cluster: VirtualCluster
    hpcq: Hpcq
    layout: RunLayout
    random: random.Random
    tell: Tell
    small_disk: Path | None = None
    clock: Path | None = None
    forgiven: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    full: list[tuple[float, float]] = field(default_factory=list)
    user_is_called: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    by_hand: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _undos: list[_Undo] = field(default_factory=list)

    def slurm(self, *command: str) -> str | None:
        """What one of Slurm's clients printed; None where it was refused, or nobody answered."""
        if not self.cluster.is_running(CONTROLLER):
            return None  # a client would try for ten seconds, in which nothing else could be done or undone
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            return self.cluster.call(*command)
        return None

    def jobs(self, *states: str) -> list[Job] | None:
        """The run's jobs that are in one of `states`; None while nobody answers."""
        wanted = ",".join(f"{name}:|" for name in _FIELDS)
        listing = self.slurm("squeue", "--noheader", "--array", "--states=all", f"--Format={wanted}")
        if listing is None:
            return None
        found = []
        for line in listing.splitlines():
            fields = line.strip().removesuffix("|").split("|", 8)
            job, array, index, state, restarts, node, reason, name, folder = fields
            if name.startswith(f"hpcq:{self.layout.name}:") and state in states:
                found.append(
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
        return found

    def pick(self, *states: str, merges: bool = True) -> Job | None:
        """One of the run's jobs in one of `states` (running, if none is named)."""
        found = [job for job in self.jobs(*(states or ("RUNNING",))) or () if merges or not job.is_merge]
        return self.random.choice(found) if found else None

    def process(self, job: Job, role: str) -> int | None:
        """The process of `job` that is its worker, srun, batch shell, step or batch step."""
        return self.roles(job).get(role)

    def roles(self, job: Job) -> dict[str, int]:
        """The processes of `job` that are there."""
        return {role: pid for pid, role in self._processes(job)}

    def _processes(self, job: Job) -> Iterator[tuple[int, str]]:
        mark, of_job = f"SLURM_CONF={self.cluster.configuration}", f"SLURM_JOB_ID={job.id}"
        titles = {f"slurmstepd: [{job.id}.0]": "step", f"slurmstepd: [{job.id}.batch]": "batch step"}
        for pid, words, variables in processes():
            if mark not in variables:
                continue
            role = titles.get(" ".join(words).strip())
            if role is None and of_job in variables:
                role = _role(words)
            if role:
                yield pid, role

    def type(self, *words: str, calm: Collection[int] = (0, 1, REFUSED), **named: Any) -> CommandResult:
        """Type a command of hpcq's, note it, and look for what a user must never see."""
        began_s = time.monotonic()
        done = self.hpcq(*words, timeout_s=COMMAND_TIMEOUT_S, env=self.cluster.environment(), **named)
        self.look(words, done.code, done.out + done.err, calm)
        last = (done.err.strip() or done.out.strip()).splitlines()[-1:]
        self.tell("command", words=words, code=done.code, seconds=round(time.monotonic() - began_s, 2), last=last)
        return done

    def look(self, words: Collection[str], code: int | None, printed: str, calm: Collection[int]) -> None:
        """A traceback, or an exit code that no fault explains, is the product's failure, whatever the round did."""
        if "Traceback (most recent call last)" in printed:
            self.tracebacks.append(f"{' '.join(words)}: {printed[-3000:]}")
        elif code not in calm:
            self.tracebacks.append(f"{' '.join(words)}: exit code {code}: {printed[-3000:]}")

    def later(self, what: str, undo: Callable[[], object], *, within_s: tuple[float, float]) -> None:
        """Undo a fault after a while, and in any case before the round is judged."""
        due_s = time.monotonic() + self.random.uniform(*within_s)
        self._undos.append(_Undo(due_s=due_s, what=what, undo=undo))

    def undo(self, *, everything: bool = False) -> bool:
        """Undo what is due; whether something remains to be undone."""
        for item in [item for item in self._undos if everything or item.due_s <= time.monotonic()]:
            self._undos.remove(item)
            item.undo()
            self.tell("undone", what=item.what)
        return bool(self._undos)

    def call_user(self, why: str) -> None:
        """Note that the run will need its user."""
        self.user_is_called.append(why)

    def send(self, pid: int | None, number: signal.Signals) -> bool:
        """Send a signal; False where the process is gone."""
        try:
            if pid is not None:
                os.kill(pid, number)
        except ProcessLookupError:
            return False
        return pid is not None

    def segments(self) -> list[Path]:
        """The committed segments."""
        return sorted(path for path in self.layout.segments.glob("*/*.h5") if not path.name.startswith("."))


def processes() -> Iterator[tuple[int, list[str], list[str]]]:
    """Number, words and environment of every process that may be looked at."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            yield int(entry.name), words, variables


def _role(words: list[str]) -> str | None:
    if any(word.endswith("slurm_script") for word in words):
        return "batch shell"
    if Path(words[0]).name == "srun":
        return "srun"
    return "worker" if "submitit.core._submit" in words else None
