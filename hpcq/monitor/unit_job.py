"""Record of the last job of a unit, as `hpcq status` shows it."""

from __future__ import annotations

from hpcq.core.frozen import dataclass
from hpcq.core.work_records import UnitState
from hpcq.slurm.jobs import SlurmJob, SlurmState
from hpcq.slurm.reasons import StartProblem, start_problem


@dataclass(frozen=True, kw_only=True)
class UnitJobStatus:
    """State of a unit's last job.

    Attributes:
        job_id: Id in Slurm's notation: '100', or '100_7' for an element of an array.
        array: Name of its array in the plan.
        log: Path of the job's output from before the unit started.
        job: What Slurm reports. None: Slurm no longer knows the job.
        cluster: Cluster of the job. None: that of the machine on which hpcq runs.
        home: ClusterName of the cluster to which it was submitted. None: not known.
    """

    job_id: str
    array: str
    log: str = ""
    job: SlurmJob | None = None
    cluster: str | None = None
    home: str | None = None

    @property
    def state(self) -> UnitState | None:
        """State of the job; None if Slurm no longer knows it."""
        return self.job.state.unit_state if self.job else None

    @property
    def reason(self) -> str | None:
        """State and reason in Slurm's words."""
        if self.job is None:
            return None
        return f"{self.job.state}, {self.job.reason}" if self.job.reason else str(self.job.state)

    @property
    def array_job_id(self) -> str:
        """Job id of the whole array."""
        return self.job_id.partition("_")[0]

    @property
    def is_pending(self) -> bool:
        """Whether the job is pending."""
        return self.state is UnitState.PENDING

    @property
    def is_unknown(self) -> bool:
        """Whether Slurm reports a state that this version of hpcq does not know."""
        return self.job is not None and self.job.state is SlurmState.UNKNOWN

    @property
    def cannot_start(self) -> bool:
        """Whether the job is pending, and does not start unless its request, the cluster or a limit changes."""
        return self._problem is not None and self._problem.is_permanent

    @property
    def is_live(self) -> bool:
        """Whether the job is pending or running."""
        return self.state in (UnitState.PENDING, UnitState.RUNNING)

    @property
    def is_held(self) -> bool:
        """Whether Slurm failed to start the job (failed prolog, faulty node) and holds it until it is released."""
        return self._problem is not None and self._problem.is_released

    @property
    def _problem(self) -> StartProblem | None:
        return start_problem(self.job.reason) if self.job and self.is_pending else None
