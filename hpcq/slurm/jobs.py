"""One job as Slurm reports it, and the table of Slurm's job states."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from hpcq.core.frozen import dataclass
from hpcq.core.work_records import UnitState


class SlurmState(StrEnum):
    """State of a job: the table "JOB STATE CODES" of squeue's manual (25.05). UNKNOWN: a state of another version."""

    PENDING = "PENDING"
    CONFIGURING = "CONFIGURING"
    REQUEUED = "REQUEUED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    REQUEUE_FED = "REQUEUE_FED"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    SPECIAL_EXIT = "SPECIAL_EXIT"
    RUNNING = "RUNNING"
    COMPLETING = "COMPLETING"
    SUSPENDED = "SUSPENDED"
    STOPPED = "STOPPED"
    SIGNALING = "SIGNALING"
    STAGE_OUT = "STAGE_OUT"
    RESIZING = "RESIZING"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    REVOKED = "REVOKED"
    BOOT_FAIL = "BOOT_FAIL"
    DEADLINE = "DEADLINE"
    FAILED = "FAILED"
    NODE_FAIL = "NODE_FAIL"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    PREEMPTED = "PREEMPTED"
    TIMEOUT = "TIMEOUT"
    UNKNOWN = "UNKNOWN"

    @property
    def unit_state(self) -> UnitState:
        """State of the unit that the job runs.

        A job in an unknown state counts as running: if it is alive, its unit must not be submitted again, and if it has
        ended, Slurm forgets it after some minutes.
        """
        return _UNIT_STATES.get(self, UnitState.FAILED)

    @property
    def has_ended(self) -> bool:
        """Whether Slurm has ended the job and will not start it again by itself."""
        return self not in (*_PENDING, *_RUNNING, SlurmState.UNKNOWN)

    @property
    def may_have_process(self) -> bool:
        """Whether the job may have a process on a node."""
        return self in (*_RUNNING, SlurmState.CONFIGURING, SlurmState.UNKNOWN)


_PENDING = (
    SlurmState.PENDING,
    SlurmState.CONFIGURING,
    SlurmState.REQUEUED,
    SlurmState.REQUEUE_HOLD,
    SlurmState.REQUEUE_FED,
    SlurmState.RESV_DEL_HOLD,
    SlurmState.SPECIAL_EXIT,
)
_RUNNING = (
    SlurmState.RUNNING,
    SlurmState.COMPLETING,
    SlurmState.SUSPENDED,
    SlurmState.STOPPED,
    SlurmState.SIGNALING,
    SlurmState.STAGE_OUT,
    SlurmState.RESIZING,
)
_UNIT_STATES = {
    **dict.fromkeys(_PENDING, UnitState.PENDING),
    **dict.fromkeys((*_RUNNING, SlurmState.UNKNOWN), UnitState.RUNNING),
    SlurmState.COMPLETED: UnitState.DONE,
    SlurmState.CANCELLED: UnitState.CANCELLED,
    SlurmState.REVOKED: UnitState.CANCELLED,
}
_COMPACT = {
    "BF": "BOOT_FAIL",
    "CA": "CANCELLED",
    "CD": "COMPLETED",
    "CF": "CONFIGURING",
    "CG": "COMPLETING",
    "DL": "DEADLINE",
    "F": "FAILED",
    "NF": "NODE_FAIL",
    "OOM": "OUT_OF_MEMORY",
    "PD": "PENDING",
    "PR": "PREEMPTED",
    "R": "RUNNING",
    "RD": "RESV_DEL_HOLD",
    "RF": "REQUEUE_FED",
    "RH": "REQUEUE_HOLD",
    "RQ": "REQUEUED",
    "RS": "RESIZING",
    "RV": "REVOKED",
    "S": "SUSPENDED",
    "SE": "SPECIAL_EXIT",
    "SI": "SIGNALING",
    "SO": "STAGE_OUT",
    "ST": "STOPPED",
    "TO": "TIMEOUT",
}
"""Compact forms of the states, from the same table."""


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """A job, or an element of an array, as Slurm reports it to a client, or to the job's own process.

    Attributes:
        job_id: "100", or "100_7" for an element of an array.
        state: State. COMPLETING hides the final state.
        restarts: How often Slurm has restarted the job.
        reason: Why the job is pending or has failed, in Slurm's words. None: no reason.
        node: Names of its nodes. None: no node yet.
        name: Job name; not from the environment.
        comment: Comment; only from squeue.
        partition: Partition; not from squeue.
        end_time: Local time without a time zone; only from scontrol. None: unknown.
        is_preempted: The job is in the grace time of a preemption; only from scontrol.
        exit_code: Exit code of the batch script, as a shell reports it (128 + signal); only from scontrol.
    """

    job_id: str
    state: SlurmState
    restarts: int = 0
    reason: str | None = None
    node: str | None = None
    name: str = ""
    comment: str = ""
    partition: str = ""
    end_time: datetime | None = None
    is_preempted: bool = False
    exit_code: int = 0

    @property
    def was_rejected(self) -> bool:
        """Whether sbatch has rejected the job: Slurm lists some of them for a while, as failed (22.05)."""
        return self.state is SlurmState.FAILED and self.reason == "BadConstraints" and self.node is None


def parse_state(name: str, reason: str) -> tuple[SlurmState, str | None]:
    """Parse a state and its reason as clients print them; the reason of an unknown state begins with its name.

    The state may have the compact form of a site's wrapper or format ('PD').
    """
    stated = None if reason in ("", "None") else reason
    name = _COMPACT.get(name, name)
    if name in SlurmState.__members__:
        return SlurmState(name), stated
    return SlurmState.UNKNOWN, ", ".join(filter(None, (name, stated))) or None


def element_id(array_job_id: str, index: str) -> str:
    """Return Slurm's notation of an array's element: '100_7'; '100' if `index` is not a number: not an array."""
    return f"{array_job_id}_{index}" if index.isdecimal() else array_job_id
