"""What a batch shell does when its unit has ended badly, and after every merge: `python -m hpcq.batch.epilogue`.

Runs on a node, while the job is still running, and acts on that job and its run alone. Nothing that fails here changes
how the job ends. Knows how to tell what happened; what follows from it is decided in launch/retries.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from hpcq.core.attempts import AttemptRecord, attempts_of, read_attempts
from hpcq.core.errors import HpcqError, SetupError
from hpcq.core.failures import Failure, failure_of_exit
from hpcq.core.work import Kind
from hpcq.launch.node_exclusion import joined, nodes_to_avoid
from hpcq.launch.recovery.close_attempts import EndedJob, conclude, did_not_begin
from hpcq.launch.recovery.retry_policy import Action, Decision
from hpcq.launch.recovery.stale_attempts import SlurmJob, own_job
from hpcq.launch.submissions import Ordered, read_order
from hpcq.slurm.scontrol import JobDetails, change, could_start, requeue, show_job, waiting

DONE, NOT_DONE = 0, 1
"""What this program leaves with."""

_ENDED_BY_SIGNAL = {128 + signal.SIGTERM: Failure.PREEMPTED, 128 + signal.SIGUSR2: Failure.PREEMPTED}
"""A signal that came before the unit could hear it."""

_OUT_OF_MEMORY = re.compile(r"oom[-_ ]kill|out of memory", re.IGNORECASE)


def main(words: Sequence[str]) -> int:
    """Take the submission's folder, the status that the shell would leave with, and its log's size when it started."""
    folder, status, said_before = Path(words[0]), int(words[1]), int(words[2])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    order, own = read_order(folder), own_job()
    try:
        return _see_to(folder, order, own, status, said_before)
    except HpcqError as error:
        sys.stderr.write(f"hpcq: {error}\n")
        return NOT_DONE


def _see_to(folder: Path, order: Ordered, own: SlurmJob, status: int, said_before: int) -> int:
    job = show_job(own.job_id)
    if job is None or job.state != "RUNNING":
        return NOT_DONE  # Slurm or the user is ending it, and knows why
    aftermath = Aftermath(folder=folder, order=order, own=own, job=job)
    if status:
        record = aftermath.record() or aftermath.did_not_begin(status)
        if record.outcome == "done":
            status = 0
        elif aftermath.act(record, status, said_before):
            return NOT_DONE
    if order.kind is Kind.MERGE:
        from hpcq.batch.finalize import finish

        finish(order.layout, order.retries)
    return NOT_DONE if status else DONE


class Aftermath:
    """One ended attempt, its job, and what may be done about it."""

    def __init__(self, *, folder: Path, order: Ordered, own: SlurmJob, job: JobDetails) -> None:
        self._folder = folder
        self._order = order
        self._own = own
        self._job = job
        self._unit = order.units[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))]
        self._log = folder / f"{own.job_id}_0_log.err"

    def record(self) -> AttemptRecord | None:
        """What the unit wrote of this start of the job, if it came so far."""
        mine = (self._own.job_id, self._own.restart)
        records = attempts_of(self._order.layout.attempts, self._unit)
        return next((one for one in reversed(records) if (one.job_id, one.restart) == mine), None)

    def did_not_begin(self, status: int) -> AttemptRecord:
        """Write the attempt down in the unit's stead. Another node may have what this one lacks."""
        job = EndedJob(
            job_id=self._own.job_id,
            launcher="slurm",
            node=os.environ.get("SLURMD_NODENAME", ""),
            log=str(self._log),
            restart=self._own.restart,
        )
        failure = failure_of_exit(status) or _ENDED_BY_SIGNAL.get(status, Failure.NODE_FAULT)
        return did_not_begin(self._order.layout, self._unit, job, failure)

    def act(self, record: AttemptRecord, status: int, said_before: int) -> bool:
        """Decide, unless the unit has done so, write it down, and do it; whether the job is queued again."""
        if record.decision is None:
            failure = self._failure(status, said_before)
            reason = f"its process ended with exit code {status}"
            record, decision = conclude(self._order.layout, record, self._order.retries, failure=failure, reason=reason)
        else:
            decision = Decision(action=Action(record.decision), reason=record.reason or "", rung=record.rung)
        if decision.action.goes_on:
            self._queue_again(decision)
        return decision.action.goes_on

    def _failure(self, status: int, said_before: int) -> Failure:
        """Where the record does not tell: what Slurm says, the exit code, the step's last words."""
        if self._job.is_preempted:
            return Failure.PREEMPTED
        if self._was_out_of_memory(said_before):
            return Failure.OUT_OF_MEMORY
        return failure_of_exit(status) or Failure.KILLED

    def _was_out_of_memory(self, said_before: int) -> bool:
        """The kernel's killer leaves no word but slurmstepd's, in the job's log."""
        try:
            said = self._log.read_bytes()[said_before:].decode(errors="replace")
        except OSError:
            return False
        return any(_OUT_OF_MEMORY.search(line) for line in said.splitlines() if line.startswith(("slurmstepd", "srun")))

    def _queue_again(self, decision: Decision) -> None:
        """Only a job that waits can be changed; this one does from the moment that it is told to, while it is ended."""
        changes = self._changes(decision)
        requeue(self._own.job_id)
        if changes:
            change(self._own.job_id, **changes)
        others = waiting(self._order.layout.name, self._job.partition) if "ExcNodeList" in changes else []
        if others:
            with contextlib.suppress(SetupError):  # some may have begun in between
                change(",".join(others), ExcNodeList=changes["ExcNodeList"])

    def _changes(self, decision: Decision) -> dict[str, str]:
        """Fields of the job, as scontrol names them."""
        order, changes = self._order, {}
        memory_gib = order.retries.memory_gib(order.memory_gib, decision.rung)
        if decision.action is Action.SMALLER and memory_gib and memory_gib != order.memory_gib:
            changes["MinMemoryNode"] = f"{int(memory_gib * 1024)}"
        if decision.action is Action.ELSEWHERE:
            avoided = nodes_to_avoid(read_attempts(order.layout.attempts), self._job.partition, order.retries)
            script = self._folder / f"{self._own.job_id.partition('_')[0]}_submission.sh"
            if avoided and could_start(script, joined(order.exclude, avoided)):
                changes["ExcNodeList"] = joined(order.exclude, avoided)
        return changes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
