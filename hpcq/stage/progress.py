"""Progress of staging: what the functions of this package report, and to whom.

The same reports serve models, data sets, calibration texts and environments. `hpcq.cli.stage_display` prints them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from hpcq.core.frozen import dataclass


class ItemKind(StrEnum):
    """What is staged."""

    MODEL = "model"
    DATASET = "data set"
    CALIBRATION = "calibration text"
    PANEL = "text of the fidelity panel"
    ENVIRONMENT = "environment"


class Phase(StrEnum):
    """What is being done. The values are shown to the user."""

    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    PREPARING = "preparing"


class Origin(StrEnum):
    """Where the content of a staged item comes from. The values are shown to the user.

    Attributes:
        STAGED: An earlier command has staged it.
        ADOPTED: Another program has downloaded it to the cache; it was verified.
        DOWNLOADED: At least a part was downloaded now.
        PREPARED: It was made from files on this machine.
    """

    STAGED = "already staged"
    ADOPTED = "verified in the cache"
    DOWNLOADED = "downloaded"
    PREPARED = "prepared"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing that is staged.

    Attributes:
        kind: What it is.
        name: Id on the hub, or another name.
        commit: Commit on the hub.
        detail: Part of the repository, such as the configuration of a data set.
    """

    kind: ItemKind
    name: str
    commit: str | None = None
    detail: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" + (f"@{self.commit[:12]}" if self.commit else "")


@dataclass(frozen=True, kw_only=True)
class StageProgress:
    """Progress of one phase of an item.

    Attributes:
        item: The item.
        phase: The phase.
        done: Bytes done, including those of earlier commands.
        total: Bytes in all; None if unknown, or if the phase is not measured in bytes.
    """

    item: Item
    phase: Phase
    done: int = 0
    total: int | None = None


@dataclass(frozen=True, kw_only=True)
class StagedItem:
    """An item that is complete.

    Attributes:
        item: The item.
        origin: Where its content comes from.
        size: Bytes of all its files.
        downloaded: Bytes that were downloaded now.
        seconds: Duration of this command's work on it.
        note: Remark for the user.
    """

    item: Item
    origin: Origin
    size: int
    downloaded: int = 0
    seconds: float = 0.0
    note: str | None = None


class StageReporter(Protocol):
    """Receives reports, all from the thread that called the function of this package."""

    def progress(self, progress: StageProgress) -> None:
        """Receive the progress of a phase, several times per second."""

    def note(self, item: Item, text: str) -> None:
        """Receive a line about a retry, or about another process that is waited for."""

    def finished(self, staged: StagedItem) -> None:
        """Receive the result."""


class ResultList:
    """Collects the results, and forwards all reports.

    Attributes:
        staged: The results, in their order.
    """

    def __init__(self, reporter: StageReporter) -> None:
        self._reporter = reporter
        self.staged: list[StagedItem] = []

    def progress(self, progress: StageProgress) -> None:
        """Forward the progress."""
        self._reporter.progress(progress)

    def note(self, item: Item, text: str) -> None:
        """Forward the line."""
        self._reporter.note(item, text)

    def finished(self, staged: StagedItem) -> None:
        """Keep the result and forward it."""
        self.staged.append(staged)
        self._reporter.finished(staged)


class SilentReporter:
    """Ignores all reports."""

    def progress(self, progress: StageProgress) -> None:
        """Ignore the progress."""

    def note(self, item: Item, text: str) -> None:
        """Ignore the line."""

    def finished(self, staged: StagedItem) -> None:
        """Ignore the result."""
