"""What runs on a node for one unit: record the attempt, send its output to its own log, open the worker's door.

Knows attempts and where workers live. Imports nothing heavy: hundreds of array elements pay for every import. Its
instances are pickled on the submitting host and unpickled by a worker's interpreter, perhaps of another Python version.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from submitit.core.utils import DelayedSubmission

from hpcq.attempts import Attempt, AttemptRecord, next_number, now
from hpcq.errors import HpcqError
from hpcq.layout import RunLayout
from hpcq.processes import identity
from hpcq.units import Kind, Work

_DOORS = {
    Kind.QUANTIZE: ("hpcq.quantize.worker", "quantize"),
    Kind.EVALUATE: ("hpcq.evaluate.worker", "evaluate"),
    Kind.MERGE: ("hpcq.evaluate.merging", "merge"),
}
_REASON_CHARACTERS = 500


@dataclass(frozen=True, kw_only=True)
class UnitJob:
    """The callable that submitit pickles. Folders are text: a `Path` pickled by Python 3.13 cannot be read by 3.11.

    Running it again is harmless, whatever became of the attempts before: workers commit and resume.
    """

    unit_id: str
    work: Work
    attempts_folder: str
    logs_folder: str

    @classmethod
    def of(cls, unit_id: str, work: Work, layout: RunLayout) -> UnitJob:
        """The job of one unit of the run that lies at `layout`."""
        return cls(unit_id=unit_id, work=work, attempts_folder=str(layout.attempts), logs_folder=str(layout.job_logs))

    def __call__(self) -> None:
        """Run the unit. What a worker raises is recorded and raised again, so that the scheduler sees a failure."""
        if _rank() > 0:
            return
        attempt = self._begin()
        log = Path(self.logs_folder) / f"{self.unit_id}.{attempt.record.attempt}.log"
        with _output_to(log), _signals_recorded(attempt), _Outcome(attempt):
            sys.stdout.write(_heading(attempt.record))
            _door(self.work.kind)(self.work, attempt)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again when a signal announces the end: the same job, for all progress is on disk."""
        return DelayedSubmission(self)

    def _begin(self) -> Attempt:
        folder = Path(self.attempts_folder)
        record = AttemptRecord(
            unit=self.unit_id,
            attempt=next_number(folder, self.unit_id),
            job_id=_job_id(),
            node=_node(),
            pid=os.getpid(),
            start=now(),
            launcher="slurm" if _is_slurm() else "local",
            process=identity(os.getpid()) or "",
        )
        return Attempt(folder, record)


class _Outcome:
    """Records how a block ended: whatever leaves it goes on its way."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            self._attempt.update(outcome="done", reason=None, end=now())
        elif isinstance(error, Exception):
            traceback.print_exception(error)
            self._attempt.update(outcome="failed", reason=_sentence(error), error=type(error).__name__, end=now())
        else:
            reason = self._attempt.record.reason or _interruption(error)
            self._attempt.update(outcome="interrupted", reason=reason, end=now())


def _door(kind: Kind) -> Callable[[Work, Attempt], None]:
    module, function = _DOORS[kind]
    door: Callable[[Work, Attempt], None] = getattr(importlib.import_module(module), function)
    return door


def _is_slurm() -> bool:
    """A local run inside somebody's allocation sees SLURM_JOB_ID too; submitit says which launcher is meant."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def _rank() -> int:
    """This task's number in its unit. A unit over several nodes starts a task on each; the first does the work."""
    return int(os.environ.get("SLURM_PROCID", "0")) if _is_slurm() else 0


def _job_id() -> str:
    if not _is_slurm():
        return os.environ.get("SUBMITIT_LOCAL_JOB_ID", str(os.getpid()))
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _node() -> str:
    """Slurm's name of the node, which need not be the host's."""
    return (os.environ.get("SLURMD_NODENAME") if _is_slurm() else None) or socket.gethostname()


def _sentence(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, HpcqError):
        return text
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"[:_REASON_CHARACTERS]


def _heading(record: AttemptRecord) -> str:
    return f"{record.unit}: attempt {record.attempt}, job {record.job_id} on {record.node}, {record.start}\n"


def _interruption(interruption: BaseException) -> str:
    if isinstance(interruption, KeyboardInterrupt):
        return "interrupted from the keyboard"
    return "stopped before it was done"


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Send file descriptors 1 and 2 to `log`, so that what libraries and child processes print goes there as well."""
    log.parent.mkdir(parents=True, exist_ok=True)
    kept = os.dup(1), os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    _redirect(target, target)
    os.close(target)
    try:
        yield
    finally:
        _redirect(*kept)
        for descriptor in kept:
            os.close(descriptor)


def _redirect(output: int, errors: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(output, 1)
    os.dup2(errors, 2)


@contextlib.contextmanager
def _signals_recorded(attempt: Attempt) -> Iterator[None]:
    """Write down that the end was announced, and leave only where leaving is right.

    SIGTERM under Slurm: the unit works on until it is killed. Slurm announces a preemption with it, and a job that
    ends in the grace period is FAILED and never queued again (seen with Slurm 22.05), where one that is killed is
    queued again. SIGTERM elsewhere: the launcher has cancelled the unit; leave. SIGUSR2: submitit queues the job again
    and leaves; where nodes may not use scontrol that fails, and the unit works on.
    """
    requeue = signal.getsignal(signal.SIGUSR2)
    told = False

    def on_term(_number: int, _frame: FrameType | None) -> None:
        nonlocal told
        if told:
            return  # a second one must not break off what the first has made the unit commit
        told = True
        attempt.update(outcome="interrupted", reason="told to stop by SIGTERM: preempted or cancelled", end=now())
        if not _is_slurm():
            raise SystemExit(128 + signal.SIGTERM)

    def on_usr2(number: int, frame: FrameType | None) -> None:
        if not callable(requeue):
            return
        try:
            requeue(number, frame)
        except (subprocess.SubprocessError, OSError):
            traceback.print_exc()

    handlers: dict[signal.Signals, Callable[[int, FrameType | None], Any]] = {
        signal.SIGTERM: on_term,
        signal.SIGUSR2: on_usr2,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
