"""Epilogue of a job after a failed step or a merge: classify the failure, requeue the job or give up.

It runs on a node while the job is still running, and acts only on that job and its run. It determines the failure, lets
`hpcq.launch.recovery.retry_policy` decide, and requeues the job. An error here does not change the job's exit code.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from hpcq.core.attempts import AttemptRecord, read_attempts, read_unit_attempts
from hpcq.core.errors import HpcqError, JobLimitError, SetupError
from hpcq.core.failures import Failure, classify_exit_code
from hpcq.core.files import IrregularFileError, read_tail
from hpcq.core.outcomes import Action, Launcher, Outcome
from hpcq.core.work_records import UnitKind
from hpcq.launch.recovery.end_attempts import EndedJob, close_and_decide, record_failed_start
from hpcq.launch.recovery.node_exclusion import join_excluded, nodes_to_exclude
from hpcq.launch.recovery.retry_policy import Decision
from hpcq.launch.submission_files import SCRIPT_NAME
from hpcq.launch.submissions import SubmissionSpec, read_spec
from hpcq.slurm.client import patience
from hpcq.slurm.jobs import SlurmJob, SlurmState
from hpcq.slurm.scontrol import can_start, current_job, pending_jobs, requeue, show_job, update_jobs

PATIENCE_S = 1800.0
"""Seconds for which a call is repeated while Slurm does not respond. The job's time limit ends it earlier."""

NEXT_PORTION_MINUTES = 10
"""Pause before a merge tries again to submit units, if no further job can be submitted."""

MAX_PORTION_ATTEMPTS = 7 * 24 * 60 // NEXT_PORTION_MINUTES
"""Restarts of a merge, about a week: sbatch has one error for all limits of accounts, also for those that no wait
changes (`hpcq.slurm.sbatch.is_job_limit`)."""

DONE, NOT_DONE = 0, 1
"""Exit codes of this program."""

_ENDED_BY_SIGNAL = {128 + signal.SIGTERM: Failure.PREEMPTED, 128 + signal.SIGUSR2: Failure.PREEMPTED}
"""Signals that arrived before the unit handled them."""

_LOG_BYTES = 1 << 24
"""The end of a log in which slurmstepd's messages are looked for."""

_OUT_OF_MEMORY = re.compile(r"oom[-_ ]kill|out of memory", re.IGNORECASE)


def main(arguments: Sequence[str]) -> int:
    """Run the epilogue.

    Args:
        arguments: The submission's folder, the exit status of the batch shell, and the size in bytes of the job's log
            when the shell started.
    """
    folder, status, log_offset = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    spec, own = read_spec(folder), current_job()
    try:
        with patience(PATIENCE_S):
            return _run(folder, spec, own, status, log_offset)
    except HpcqError as error:
        sys.stderr.write(f"hpcq: {error}\n")
        return NOT_DONE


def _run(folder: Path, spec: SubmissionSpec, own: SlurmJob, status: int, log_offset: int) -> int:
    job = show_job(own.job_id)
    if job is None or job.state is not SlurmState.RUNNING:
        return NOT_DONE  # Slurm or the user is ending the job
    epilogue = Epilogue(folder=folder, spec=spec, own=own, job=job)
    if status:
        record = epilogue.record() or epilogue.record_failed_start(status, log_offset)
        if record.outcome is Outcome.DONE:
            status = 0
        elif epilogue.decide_and_requeue(record, status, log_offset):
            return NOT_DONE
    if spec.kind is UnitKind.MERGE:
        from hpcq.batch.resubmit import resubmit_missing

        try:
            resubmit_missing(spec.layout, spec.retries)
        except JobLimitError as error:
            if own.restarts >= MAX_PORTION_ATTEMPTS:
                sys.stderr.write(
                    f"hpcq: {error}\nhpcq: The merge was restarted {own.restarts} times, and gives up. When some of"
                    f" your jobs have ended, run `hpcq resume {spec.layout.name}`.\n"
                )
                return NOT_DONE
            sys.stderr.write(f"hpcq: {error}\nhpcq: The merge runs again in {NEXT_PORTION_MINUTES} minutes.\n")
            requeue(own.job_id)
            update_jobs(own.job_id, StartTime=f"now+{NEXT_PORTION_MINUTES}minutes")
            return NOT_DONE
    return NOT_DONE if status else DONE


class Epilogue:
    """Epilogue of one ended attempt: its record, the decision, the requeue of its job."""

    def __init__(self, *, folder: Path, spec: SubmissionSpec, own: SlurmJob, job: SlurmJob) -> None:
        self._folder = folder
        self._spec = spec
        self._own = own
        self._job = job
        self._unit = spec.units[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))]
        self._log = folder / f"{own.job_id}_0_log.err"

    def record(self) -> AttemptRecord | None:
        """Return the record of this start of the job; None if the unit did not get that far."""
        own = (self._own.job_id, self._own.restarts)
        records = read_unit_attempts(self._spec.layout.attempts, self._unit)
        return next((one for one in reversed(records) if (one.job_id, one.restart) == own), None)

    def record_failed_start(self, status: int, log_offset: int) -> AttemptRecord:
        """Record the attempt on behalf of the unit. The default is a node fault, while another node may be better."""
        job = EndedJob(
            job_id=self._own.job_id,
            launcher=Launcher.SLURM,
            node=self._own.node or "",
            log=str(self._log),
            restart=self._own.restarts,
            log_offset=log_offset,
        )
        failure = classify_exit_code(status) or _ENDED_BY_SIGNAL.get(status)
        if failure is None:
            failure = Failure.MISSING_RESOURCE if self._fails_everywhere() else Failure.NODE_FAULT
        return record_failed_start(self._spec.layout, self._unit, job, failure)

    def _fails_everywhere(self) -> bool:
        """Whether no unit of the array has started so far, on more nodes than one or the only one."""
        nodes = {self._own.node or ""}
        for unit in self._spec.units:
            records = read_unit_attempts(self._spec.layout.attempts, unit)
            if any(record.pid for record in records):
                return False
            nodes |= {record.node for record in records}
        return len(nodes) > 1 or not self._spec.retries.max_excluded_nodes

    def decide_and_requeue(self, record: AttemptRecord, status: int, log_offset: int) -> bool:
        """Decide unless the unit has, record and carry out the decision; return whether the job was requeued."""
        if record.decision is None:
            failure = self._failure(status, log_offset)
            reason = f"its process exited with code {status}"
            record, decision = close_and_decide(
                self._spec.layout, record, self._spec.retries, failure=failure, reason=reason
            )
        else:
            decision = Decision(action=record.decision, reason=record.reason or "", oom_step=record.oom_step)
        if decision.action.is_retry:
            self._requeue(decision)
        return decision.action.is_retry

    def _failure(self, status: int, log_offset: int) -> Failure:
        """Return the failure if the record has none: from Slurm, the exit code, and the output of slurmstepd."""
        if self._job.is_preempted:
            return Failure.PREEMPTED
        if self._was_out_of_memory(log_offset):
            return Failure.OUT_OF_MEMORY
        return classify_exit_code(status) or Failure.KILLED

    def _was_out_of_memory(self, log_offset: int) -> bool:
        """Whether slurmstepd reported an out-of-memory kill in the job's log, the only trace of it."""
        try:
            text = read_tail(self._log, _LOG_BYTES, log_offset).decode(errors="replace")
        except (OSError, IrregularFileError):
            return False
        return any(_OUT_OF_MEMORY.search(line) for line in text.splitlines() if line.startswith(("slurmstepd", "srun")))

    def _requeue(self, decision: Decision) -> None:
        """Requeue the job, then change it: only pending jobs can be changed, and a requeued job is pending."""
        changes = self._changes(decision)
        requeue(self._own.job_id)
        if changes:
            update_jobs(self._own.job_id, **changes)
        others = pending_jobs(self._spec.layout.name, self._job.partition) if "ExcNodeList" in changes else []
        if others:
            with contextlib.suppress(SetupError):  # some may have started in the meantime
                update_jobs(",".join(others), ExcNodeList=changes["ExcNodeList"])

    def _changes(self, decision: Decision) -> dict[str, str]:
        """Return the fields of the job to change, by scontrol's names."""
        spec, changes = self._spec, {}
        memory_gib = spec.retries.memory_gib(spec.memory_gib, decision.oom_step)
        if decision.action is Action.RETRY_SMALLER and memory_gib and memory_gib != spec.memory_gib:
            if spec.memory_option == "mem":
                changes["MinMemoryNode"] = f"{int(memory_gib * 1024)}"
            elif spec.memory_option == "mem-per-cpu":
                changes["MinMemoryCPU"] = f"{int(memory_gib * 1024 / spec.cpus_per_unit)}"
            # scontrol cannot change the memory per GPU (22.05); the next submission requests more.
        if decision.action is Action.RETRY_ELSEWHERE:
            faulty = nodes_to_exclude(read_attempts(spec.layout.attempts), self._job.partition, spec.retries)
            script = self._folder / SCRIPT_NAME
            if faulty and can_start(script, join_excluded(spec.exclude, faulty)):
                changes["ExcNodeList"] = join_excluded(spec.exclude, faulty)
        return changes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
