"""Entry point of a unit's job on a node: record the attempt, redirect output to the log, call the worker.

    python -m hpcq.launch.job FOLDER INDEX

runs the unit in line INDEX (from 0) of the file `units.jsonl` in the folder of the submission. The module imports
nothing heavy, because hundreds of array elements pay for each import.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from hpcq.core.attempts import Attempt, AttemptRecord, new_attempt, utc_now
from hpcq.core.error_classification import classify_error
from hpcq.core.errors import ProcessDiedError, SetupError
from hpcq.core.failures import EXIT_CODES, SIGTERMED, Failure, exit_code_for
from hpcq.core.files import read_regular
from hpcq.core.frozen import dataclass
from hpcq.core.json_records import from_json
from hpcq.core.outcomes import Launcher, Outcome
from hpcq.core.paths import RunLayout
from hpcq.core.processes import identity
from hpcq.core.work_records import UnitKind, Work
from hpcq.launch.array_spec import ArraySpec, UnitSpec
from hpcq.launch.multinode.coordinator import Coordinator
from hpcq.launch.multinode.follower import run_follower
from hpcq.launch.multinode.rendezvous import RankInfo, current_rank_info
from hpcq.launch.recovery.end_attempts import committed_rows
from hpcq.launch.recovery.preemption import PreemptionHandler
from hpcq.launch.recovery.retry_policy import OOM_STEPS, RetryPolicy, next_oom_step
from hpcq.launch.recovery.signals import SignalListener, ignore_termination_signals
from hpcq.launch.recovery.stale_attempts import close_stale_attempts
from hpcq.launch.unit_log import error_message, exit_now, redirect_output
from hpcq.slurm.jobs import SlurmJob
from hpcq.slurm.scontrol import current_job

_WORKERS = {
    UnitKind.STAGE: ("hpcq.stage.worker", "stage"),
    UnitKind.QUANTIZE: ("hpcq.quantize.worker", "quantize"),
    UnitKind.EVALUATE: ("hpcq.evaluate.worker", "evaluate"),
    UnitKind.MERGE: ("hpcq.evaluate.merge", "merge"),
}

LAUNCHER_VARIABLE = "SUBMITIT_EXECUTOR"
"""Environment variable that says which launcher started the process; submitit's batch scripts set it."""

RECORDS_NAME = "units.jsonl"
"""File in the folder of a submission: one line per element, a `UnitJob` as JSON."""

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Variables with which the hub's libraries make no request. Everything that a unit reads is staged."""


@dataclass(frozen=True, kw_only=True)
class UnitJob:
    """What one element of a submission does. Running it again is safe in any state: workers commit and resume.

    Attributes:
        gpus: GPUs of the unit on all of its nodes.
        planned: Estimates of the plan, recorded with the attempt.
    """

    unit_id: str
    work: Work
    run: str
    runs_folder: str
    checkpoints_folder: str
    logs_folder: str
    gpus: int
    retries: RetryPolicy
    planned: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_spec(cls, array: ArraySpec, unit: UnitSpec, layout: RunLayout) -> UnitJob:
        """Return the job of one unit of `array`, of the run at `layout`."""
        return cls(
            unit_id=unit.unit_id,
            work=unit.work,
            run=layout.name,
            runs_folder=str(layout.runs),
            checkpoints_folder=str(layout.checkpoints),
            logs_folder=str(layout.logs),
            gpus=array.nodes * array.gpus_per_node,
            retries=array.retries,
            planned=unit.planned,
        )

    @property
    def layout(self) -> RunLayout:
        """Folders of the run."""
        return RunLayout(
            name=self.run,
            runs=Path(self.runs_folder),
            checkpoints=Path(self.checkpoints_folder),
            logs=Path(self.logs_folder),
        )

    def __call__(self) -> None:
        """Run the unit. An error of the worker is recorded, and the process exits with its failure class's code."""
        if _is_slurm():
            ignore_termination_signals()
        os.environ.update(dict.fromkeys(_OFFLINE, "0" if self.work.kind is UnitKind.STAGE else "1"))
        with _ExitWithFailureCode():
            rank_info = current_rank_info(self.layout, self.unit_id) if _spans_nodes() else None
            if rank_info is not None and rank_info.rank > 0:
                run_follower(rank_info, self.work, self.layout.job_logs, self.unit_id)
            else:
                self._run(rank_info)

    def _run(self, rank_info: RankInfo | None) -> None:
        attempt = self._start_attempt()
        log = self.layout.unit_log(self.unit_id, attempt.record.attempt)
        recorder = _OutcomeRecorder(attempt, self.layout)
        with redirect_output(log), self._signal_listener(attempt), recorder, _coordinator(rank_info, attempt, recorder):
            sys.stdout.write(_log_header(attempt.record))
            _worker(self.work.kind)(self.work, attempt)

    def _start_attempt(self) -> Attempt:
        layout, own = self.layout, _own_job()
        history = close_stale_attempts(layout, self.unit_id, self.retries, own=own)
        record = AttemptRecord(
            unit=self.unit_id,
            attempt=0,
            job_id=own.job_id if own else str(os.getpid()),
            node=_node(),
            pid=os.getpid(),
            start=utc_now(),
            launcher=Launcher.SLURM if own else Launcher.LOCAL,
            process=identity(os.getpid()) or "",
            restart=own.restarts if own else 0,
            gpus=self.gpus,
            oom_step=next_oom_step(history),
            facts={"planned": dict(self.planned)} if self.planned else {},
        )
        final = _final_attempt(history, own)
        if final is not None:
            refused = replace(record, failure=final.failure, decision=final.decision, reason=final.reason)
            new_attempt(layout.attempts, replace(refused, outcome=Outcome.FAILED, end=record.start))
            raise SystemExit(EXIT_CODES[Failure.MISSING_RESOURCE])
        attempt = new_attempt(layout.attempts, record)
        attempt.batch_share = OOM_STEPS[record.oom_step].batch_share
        return attempt

    def _signal_listener(self, attempt: Attempt) -> SignalListener:
        if _is_slurm():
            return SignalListener(PreemptionHandler(attempt, self.layout, self.retries), exit_on_sigterm=False)
        return SignalListener(lambda _number: attempt.notify_termination(), exit_on_sigterm=True)


def _final_attempt(history: Sequence[AttemptRecord], own: SlurmJob | None) -> AttemptRecord | None:
    """Return the last attempt if its decision was not to retry, although Slurm has requeued its job; else None."""
    last = history[-1] if history else None
    if own is None or last is None or last.job_id != own.job_id or last.decision is None:
        return None
    return None if last.decision.is_retry else last


class _ExitWithFailureCode:
    """Exits with the code of the failure class of an exception. Slurm keeps the code even if no file can be written."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception):
            sys.stderr.write(f"hpcq: {error_message(error)}\n")
            code = exit_code_for(classify_error(error))
            if _spans_nodes():
                exit_now(code)  # threads may wait for a dead node
            raise SystemExit(code) from error


class _OutcomeRecorder:
    """Records the outcome of a block in the attempt. Exceptions propagate."""

    def __init__(self, attempt: Attempt, layout: RunLayout) -> None:
        self._attempt = attempt
        self._layout = layout

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            self._attempt.update(outcome=Outcome.DONE, reason=None, failure=None, decision=None, end=utc_now())
        elif isinstance(error, Exception):
            self.failed(error)
        else:
            self._attempt.update(outcome=Outcome.INTERRUPTED, reason=_interruption(error), end=utc_now())

    def failed(self, error: Exception) -> None:
        """Record that the unit failed with `error`."""
        traceback.print_exception(error)
        self._attempt.update(
            outcome=Outcome.FAILED,
            reason=error_message(error),
            error=type(error).__name__,
            failure=classify_error(error),
            faulty_node=error.node if isinstance(error, ProcessDiedError) else "",
            decision=None,
            committed=committed_rows(self._layout, self._attempt.record),
            end=utc_now(),
        )

    def peer_failed(self, error: Exception) -> None:
        """Record the failure of another node and exit; called from another thread.

        The main thread may wait for a dead node. If termination was already requested, that reason is kept: failures of
        other nodes are expected then.
        """
        if self._attempt.record.outcome is Outcome.RUNNING:
            self._attempt.notify_termination()  # commits the responses so far
            self.failed(error)
            exit_now(exit_code_for(classify_error(error)))


def _coordinator(
    rank_info: RankInfo | None, attempt: Attempt, recorder: _OutcomeRecorder
) -> Coordinator | contextlib.nullcontext[None]:
    """Return the coordinator of the unit's other nodes; a null context for a unit on one node."""
    return Coordinator(rank_info, attempt, recorder.peer_failed) if rank_info else contextlib.nullcontext()


def _worker(kind: UnitKind) -> Callable[[Work, Attempt], None]:
    module, function = _WORKERS[kind]
    worker: Callable[[Work, Attempt], None] = getattr(importlib.import_module(module), function)
    return worker


def _is_slurm() -> bool:
    """Whether the Slurm launcher started this process. SLURM_JOB_ID is also set in a local run in an allocation."""
    return os.environ.get(LAUNCHER_VARIABLE) == Launcher.SLURM


def _spans_nodes() -> bool:
    """Whether this process is one of several that Slurm started for the unit, one per node."""
    return _is_slurm() and int(os.environ.get("SLURM_NTASKS", "1")) > 1


def _own_job() -> SlurmJob | None:
    """Return the current Slurm job; None if Slurm did not start this process."""
    return current_job() if _is_slurm() else None


def _node() -> str:
    """Return Slurm's name of the node, which can differ from the host name."""
    return (os.environ.get("SLURMD_NODENAME") if _is_slurm() else None) or socket.gethostname()


def _log_header(record: AttemptRecord) -> str:
    return f"{record.unit}: attempt {record.attempt}, job {record.job_id} on {record.node}, {record.start}\n"


def _interruption(interruption: BaseException) -> str:
    if isinstance(interruption, KeyboardInterrupt):
        return "interrupted from the keyboard"
    if isinstance(interruption, SystemExit) and interruption.code == SIGTERMED:
        return "received SIGTERM: preempted or cancelled"
    return "stopped before completion"


def read_job(folder: Path, index: int) -> UnitJob:
    """Return the job of element `index` of the submission in `folder`.

    Raises:
        SetupError: The file is missing, damaged, or has no such line.
    """
    path = folder / RECORDS_NAME
    try:
        lines = read_regular(path).splitlines()
        if index >= len(lines):
            raise SetupError(f"{path}: has {len(lines)} lines, and none for element {index}: submit the unit again.")
        return from_json(UnitJob, lines[index])
    except (OSError, ValueError) as error:
        raise SetupError(f"{path}: cannot be read ({error}): submit the unit again.") from error


def main(arguments: Sequence[str]) -> None:
    """Run a unit.

    Args:
        arguments: The folder of the submission, and the index of its element.
    """
    with _ExitWithFailureCode():
        job = read_job(Path(arguments[0]), int(arguments[1]))
    job()


if __name__ == "__main__":
    main(sys.argv[1:])
