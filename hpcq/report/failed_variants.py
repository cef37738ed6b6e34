"""Variants without a score because one of their units is not done, as reports show them."""

from __future__ import annotations

from hpcq.core.frozen import dataclass
from hpcq.core.work_records import UnitState


@dataclass(frozen=True, kw_only=True)
class VariantFailure:
    """Why a variant has no score.

    Attributes:
        unit: Id of its first unit that has failed or was cancelled; else of the first that is not done.
        state: State of the unit; 'not merged' if all units are done.
        failure: Class of the failure; None if there was none, or if it is unknown.
        reason: One sentence.
        log: Path of the unit's last log; None if it has none.
    """

    unit: str
    state: str
    failure: str | None = None
    reason: str | None = None
    log: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the unit has failed or was cancelled: waiting alone does not complete it."""
        return self.state in (UnitState.FAILED, UnitState.CANCELLED)

    @property
    def sentence(self) -> str:
        """What has happened, why, and where the log is."""
        failure = f" ({self.failure})" if self.failure else ""
        reason = f": {self.reason.rstrip('.')}" if self.reason else ""
        log = f" Log: {self.log}" if self.log else ""
        return f"{self.unit} {self.state}{failure}{reason}.{log}"
