"""Display of staging on standard error: bars on a terminal, plain lines in a pipe, one line per staged item."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hpcq.report.number_formats import format_duration
from hpcq.stage.progress import Item, Origin, Phase, StagedItem, StageProgress, StageReporter

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

PLAIN_INTERVAL_S = 5.0
_RATE_WINDOW_S = 30.0
_COMMIT_DIGITS = 7
_UNITS = ("B", "kB", "MB", "GB", "TB")


@contextlib.contextmanager
def stage_display() -> Iterator[StageReporter]:
    """Yield the receiver of reports."""
    if sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
        if not console.is_dumb_terminal:
            bars = _progress_bars(console)
            try:
                yield _Bars(bars)
            finally:
                bars.stop()
            return
    yield _PlainLines()


def item_line(staged: StagedItem) -> str:
    """Return the line of a staged item: kind, name, commit, size, and where it comes from."""
    parts = [_title(staged.item), *([format_bytes(staged.size)] if staged.size else []), _origin(staged)]
    return "  ".join(parts) + (f"  ({staged.note})" if staged.note else "")


def format_bytes(size: float) -> str:
    """Format bytes with three digits and a decimal prefix: '16.4 GB'."""
    for unit in _UNITS[:-1]:
        if abs(size) < 999.5:  # noqa: PLR2004 (shown as 1.00 of the next unit)
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} {_UNITS[-1]}"


def _title(item: Item) -> str:
    commit = f"commit {item.commit[:_COMMIT_DIGITS]}" if item.commit else ""
    return "  ".join(filter(None, (f"{item.kind} {item.name}", item.detail, commit)))


def _origin(staged: StagedItem) -> str:
    if staged.origin is Origin.STAGED:
        return str(staged.origin)
    rate = f" ({format_bytes(staged.downloaded / staged.seconds)}/s)" if staged.downloaded and staged.seconds else ""
    return f"{staged.origin} in {format_duration(staged.seconds)}{rate}"


class _Rate:
    """Bytes per second of one phase of one item, over the last `_RATE_WINDOW_S`."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = []
        self._phase: tuple[Item, Phase] | None = None

    def update(self, progress: StageProgress) -> float | None:
        """Add a sample and return the rate; None if it is not known yet."""
        now_s = time.monotonic()
        if self._phase != (progress.item, progress.phase):
            self._phase, self._samples = (progress.item, progress.phase), []
        recent = [sample for sample in self._samples if now_s - sample[0] <= _RATE_WINDOW_S]
        self._samples = [*recent, (now_s, progress.done)]
        first_s, first_done = self._samples[0]
        gained = progress.done - first_done
        return gained / (now_s - first_s) if gained > 0 and now_s > first_s else None


class _PlainLines:
    """Prints the progress every `PLAIN_INTERVAL_S`."""

    def __init__(self) -> None:
        self._rate = _Rate()
        self._printed_s = time.monotonic()

    def progress(self, progress: StageProgress) -> None:
        """Print a line if the last one is old enough."""
        rate = self._rate.update(progress)
        if time.monotonic() - self._printed_s >= PLAIN_INTERVAL_S:
            self._print(f"{_title(progress.item)}: {progress.phase}{_amount(progress, rate)}")

    def note(self, item: Item, text: str) -> None:
        """Print the line."""
        self._print(text if item.name in text else f"{item.kind} {item.name}: {text}")

    def finished(self, staged: StagedItem) -> None:
        """Print the line of the item."""
        self._print(item_line(staged))

    def _print(self, line: str) -> None:
        self._printed_s = time.monotonic()
        print(line, file=sys.stderr, flush=True)


def _amount(progress: StageProgress, rate: float | None) -> str:
    if progress.total is None:
        return ""
    left = (
        f", {format_bytes(rate)}/s, about {format_duration((progress.total - progress.done) / rate)} left"
        if rate
        else ""
    )
    return f" {format_bytes(progress.done)} of {format_bytes(progress.total)}{left}"


def _progress_bars(console: Console) -> Progress:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        speed_estimate_period=_RATE_WINDOW_S,
    )


class _Bars:
    """Draws one bar per item, and prints lines above the bars. Without items it leaves the terminal to others."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[tuple[Item, Phase], TaskID] = {}
        self._print: Callable[[str], None] = lambda line: progress.console.print(line, markup=False, soft_wrap=True)

    def progress(self, progress: StageProgress) -> None:
        """Update the bar of the item's phase; each phase has its own, with its own rate."""
        key = (progress.item, progress.phase)
        if key not in self._tasks:
            self._remove(progress.item)
            text = f"{_title(progress.item)}  {progress.phase}"
            self._tasks[key] = self._progress.add_task(text, total=progress.total, completed=progress.done)
            self._progress.start()
        self._progress.update(self._tasks[key], completed=progress.done, total=progress.total)

    def note(self, item: Item, text: str) -> None:
        """Print the line."""
        self._print(text if item.name in text else f"{item.kind} {item.name}: {text}")

    def finished(self, staged: StagedItem) -> None:
        """Replace the bar with the line of the item."""
        self._remove(staged.item)
        self._print(item_line(staged))

    def _remove(self, item: Item) -> None:
        for key in [key for key in self._tasks if key[0] == item]:
            self._progress.remove_task(self._tasks.pop(key))
        if not self._tasks:
            self._progress.stop()
