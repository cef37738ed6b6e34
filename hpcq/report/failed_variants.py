"""Variants without a score because one of their units has failed or was cancelled, as reports show them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class VariantFailure:
    """Why a variant has no score.

    Attributes:
        unit: Id of its first unit that has failed or was cancelled.
        state: State of the unit: 'failed' or 'cancelled'.
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
    def sentence(self) -> str:
        """What has happened, why, and where the log is."""
        failure = f" ({self.failure})" if self.failure else ""
        reason = f": {self.reason.rstrip('.')}" if self.reason else ""
        log = f" Log: {self.log}" if self.log else ""
        return f"{self.unit} {self.state}{failure}{reason}.{log}"
