"""What runs on a node for one unit: record the attempt, send its output to its own log, open the worker's door.

Knows attempts and where workers live. Imports nothing heavy: hundreds of array elements pay for every import. Its
instances are pickled on the submitting host and unpickled by a worker's interpreter, perhaps of another Python version.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpcq.core.attempts import Attempt, AttemptRecord, new_attempt, now
from hpcq.core.errors import ProcessEnded
from hpcq.core.failures import EXIT_CODES, SIGTERMED, Failure, exit_code_of, failure_of
from hpcq.core.paths import RunLayout
from hpcq.core.processes import identity
from hpcq.core.work import Kind, Work
from hpcq.launch.array_spec import ArrayOrder, UnitOrder
from hpcq.launch.multinode.coordinator import Company
from hpcq.launch.multinode.follower import follow
from hpcq.launch.multinode.rendezvous import Seat, own_seat
from hpcq.launch.output import leave, output_to, sentence
from hpcq.launch.recovery.close_attempts import added_by
from hpcq.launch.recovery.preemption import Announced
from hpcq.launch.recovery.retry_policy import LADDER, Action, Policy, next_rung
from hpcq.launch.recovery.signals import Notices, ignore_announcements
from hpcq.launch.recovery.stale_attempts import SlurmJob, own_job, settle_predecessors

_DOORS = {
    Kind.QUANTIZE: ("hpcq.quantize.worker", "quantize"),
    Kind.EVALUATE: ("hpcq.evaluate.worker", "evaluate"),
    Kind.MERGE: ("hpcq.evaluate.merge", "merge"),
}


@dataclass(frozen=True, kw_only=True)
class UnitJob:
    """The callable that submitit pickles. Folders are text: a `Path` pickled by Python 3.13 cannot be read by 3.11.

    Running it again is harmless, whatever became of the attempts before: workers commit and resume. It has none of the
    `checkpoint` that submitit looks for: what is done when the end is announced stands in launch/announced.py.
    """

    unit_id: str
    work: Work
    run: str
    runs_folder: str
    checkpoints_folder: str
    logs_folder: str
    gpus: int
    retries: Policy
    planned: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, order: ArrayOrder, unit: UnitOrder, layout: RunLayout) -> UnitJob:
        """The job of one unit of `order`, of the run that lies at `layout`."""
        return cls(
            unit_id=unit.unit_id,
            work=unit.work,
            run=layout.name,
            runs_folder=str(layout.runs),
            checkpoints_folder=str(layout.checkpoints),
            logs_folder=str(layout.logs),
            gpus=order.nodes * order.gpus_per_node,
            retries=order.retries,
            planned=unit.planned,
        )

    @property
    def layout(self) -> RunLayout:
        """Where the run lies."""
        folders = {"runs": self.runs_folder, "checkpoints": self.checkpoints_folder, "logs": self.logs_folder}
        return RunLayout(name=self.run, **{name: Path(folder) for name, folder in folders.items()})

    def __call__(self) -> None:
        """Run the unit. What a worker raises is recorded, and the process leaves with the exit code of its class."""
        if _is_slurm():
            ignore_announcements()
        with _ExitCode():
            seat = own_seat(self.layout, self.unit_id) if _spans_nodes() else None
            if seat is not None and seat.rank > 0:
                follow(seat, self.work, self.layout.job_logs, self.unit_id)
            else:
                self._run(seat)

    def _run(self, seat: Seat | None) -> None:
        attempt = self._begin()
        log = self.layout.job_logs / f"{self.unit_id}.{attempt.record.attempt}.log"
        outcome = _Outcome(attempt, self.layout)
        with output_to(log), self._notices(attempt), outcome, _company(seat, attempt, outcome):
            sys.stdout.write(_heading(attempt.record))
            _door(self.work.kind)(self.work, attempt)

    def _begin(self) -> Attempt:
        layout, own = self.layout, _own_job()
        history = settle_predecessors(layout, self.unit_id, self.retries, own=own)
        record = AttemptRecord(
            unit=self.unit_id,
            attempt=0,
            job_id=own.job_id if own else os.environ.get("SUBMITIT_LOCAL_JOB_ID", str(os.getpid())),
            node=_node(),
            pid=os.getpid(),
            start=now(),
            launcher="slurm" if own else "local",
            process=identity(os.getpid()) or "",
            restart=own.restart if own else 0,
            gpus=self.gpus,
            rung=next_rung(history),
            facts={"planned": dict(self.planned)} if self.planned else {},
        )
        refusal = _refusal(history, own)
        if refusal is not None:
            said = replace(record, failure=refusal.failure, decision=refusal.decision, reason=refusal.reason)
            new_attempt(layout.attempts, replace(said, outcome="failed", end=record.start))
            raise SystemExit(EXIT_CODES[Failure.LACKING])
        attempt = new_attempt(layout.attempts, record)
        attempt.batch_share = LADDER[record.rung].batch
        return attempt

    def _notices(self, attempt: Attempt) -> Notices:
        if _is_slurm():
            return Notices(Announced(attempt, self.layout, self.retries), leaves=False)
        return Notices(lambda _number: attempt.notify(), leaves=True)


def _refusal(history: Sequence[AttemptRecord], own: SlurmJob | None) -> AttemptRecord | None:
    """The last attempt, where it was the last: Slurm queued its job again, although the unit was given up."""
    last = history[-1] if history else None
    if own is None or last is None or last.job_id != own.job_id or last.decision is None:
        return None
    return None if Action(last.decision).goes_on else last


class _ExitCode:
    """Leaves with the exit code of what leaves the block, which a scheduler keeps even where no file can be written.

    submitit (1.5.4) would keep a pickle of an exception, which nobody reads, and leave with 1.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception):
            sys.stderr.write(f"hpcq: {sentence(error)}\n")
            code = exit_code_of(failure_of(error))
            if _spans_nodes():
                leave(code)  # what waits for a node that is gone must not hold this one
            raise SystemExit(code) from error


class _Outcome:
    """Records how a block ended: whatever leaves it goes on its way."""

    def __init__(self, attempt: Attempt, layout: RunLayout) -> None:
        self._attempt = attempt
        self._layout = layout

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            self._attempt.update(outcome="done", reason=None, failure=None, decision=None, end=now())
        elif isinstance(error, Exception):
            self.failed(error)
        else:
            self._attempt.update(outcome="interrupted", reason=_interruption(error), end=now())

    def failed(self, error: Exception) -> None:
        """Record that the unit ended by `error`."""
        traceback.print_exception(error)
        self._attempt.update(
            outcome="failed",
            reason=sentence(error),
            error=type(error).__name__,
            failure=str(failure_of(error)),
            faulty_node=error.node if isinstance(error, ProcessEnded) else "",
            decision=None,
            added=added_by(self._layout, self._attempt.record),
            end=now(),
        )

    def failed_elsewhere(self, error: Exception) -> None:
        """The same from another thread, while this node's main thread may wait for a node that is gone; and leave.

        Where the unit has been told to stop, it is no wonder that others end: that reason stands.
        """
        if self._attempt.record.outcome == "running":
            self._attempt.notify()  # what is answered is committed
            self.failed(error)
            leave(exit_code_of(failure_of(error)))


def _company(seat: Seat | None, attempt: Attempt, outcome: _Outcome) -> Company | contextlib.nullcontext[None]:
    """The unit's other nodes, if it has any, for as long as the block lasts."""
    return Company(seat, attempt, outcome.failed_elsewhere) if seat else contextlib.nullcontext()


def _door(kind: Kind) -> Callable[[Work, Attempt], None]:
    module, function = _DOORS[kind]
    door: Callable[[Work, Attempt], None] = getattr(importlib.import_module(module), function)
    return door


def _is_slurm() -> bool:
    """A local run inside somebody's allocation sees SLURM_JOB_ID too; submitit says which launcher is meant."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def _spans_nodes() -> bool:
    """Whether this process is one of several that Slurm started for a unit, each on a node."""
    return _is_slurm() and int(os.environ.get("SLURM_NTASKS", "1")) > 1


def _own_job() -> SlurmJob | None:
    """The job that this is; None where Slurm did not start it."""
    return own_job() if _is_slurm() else None


def _node() -> str:
    """Slurm's name of the node, which need not be the host's."""
    return (os.environ.get("SLURMD_NODENAME") if _is_slurm() else None) or socket.gethostname()


def _heading(record: AttemptRecord) -> str:
    return f"{record.unit}: attempt {record.attempt}, job {record.job_id} on {record.node}, {record.start}\n"


def _interruption(interruption: BaseException) -> str:
    if isinstance(interruption, KeyboardInterrupt):
        return "interrupted from the keyboard"
    if isinstance(interruption, SystemExit) and interruption.code == SIGTERMED:
        return "told to stop by SIGTERM: preempted or cancelled"
    return "stopped before it was done"
