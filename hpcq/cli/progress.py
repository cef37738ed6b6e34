"""Progress display of a local run on standard error: a live view on a terminal, plain lines in a pipe."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hpcq.cli.formatting import request_progress
from hpcq.core.sentences import one_line
from hpcq.core.work_records import UnitState
from hpcq.monitor.eta import run_progress, unit_seconds_left
from hpcq.monitor.status import RunStatus, UnitStatus
from hpcq.report.number_formats import format_duration

if TYPE_CHECKING:
    from rich.console import Console

REDRAW_INTERVAL_S = 1.0
PLAIN_INTERVAL_S = 15.0

StatusCallback = Callable[[RunStatus], None]


@contextlib.contextmanager
def progress_display() -> Iterator[StatusCallback]:
    """Yield a function to call with each new state of the run."""
    if sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True)
        if not console.is_dumb_terminal:
            with _live_display(console) as on_status:
                yield on_status
            return
    yield _PlainLines()


class _PlainLines:
    """Print each change of a unit's state, and the requests done every `PLAIN_INTERVAL_S`."""

    def __init__(self) -> None:
        self._reported: dict[str, UnitState] = {}
        self._printed_s = time.monotonic()

    def __call__(self, status: RunStatus) -> None:
        for unit in status.units:
            before = self._reported.get(unit.id, UnitState.WAITING)
            if unit.state is not before:
                self._reported[unit.id] = unit.state
                reason = f": {one_line(unit.reason)}" if unit.reason else ""
                self._print(f"{unit.id}: {unit.state}{reason}")
        if time.monotonic() - self._printed_s >= PLAIN_INTERVAL_S:
            self._printed_s = time.monotonic()
            for line in running_lines(status):
                self._print(line)

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def running_lines(status: RunStatus) -> list[str]:
    """Return one line for the run and one line per running unit."""
    progress = run_progress(status)
    units = f"{status.counts.get('done', 0)}/{len(status.units)} units"
    requests = f", {progress.done}/{progress.total} requests" if progress.total else ""
    left = f", about {format_duration(progress.seconds_left)} left" if progress.seconds_left is not None else ""
    return [f"{status.run}: {units}{requests}{left}"] + [
        f"  {unit.id}: {_unit_progress(unit)}" for unit in status.units if unit.state is UnitState.RUNNING
    ]


def _unit_progress(unit: UnitStatus) -> str:
    left = unit_seconds_left(unit)
    parts = [request_progress(unit), unit.phase or "", f"{format_duration(left)} left" if left is not None else ""]
    return ", ".join(part for part in parts if part) or "starting"


@contextlib.contextmanager
def _live_display(console: Console) -> Iterator[StatusCallback]:
    """Yield a callback that redraws the terminal. The display starts with the first status, after any question."""
    from rich.live import Live
    from rich.text import Text

    live = Live(Text("starting"), console=console, refresh_per_second=4, transient=True)
    drawn_s = 0.0

    def on_status(status: RunStatus) -> None:
        nonlocal drawn_s
        live.start()
        if time.monotonic() - drawn_s >= REDRAW_INTERVAL_S:
            drawn_s = time.monotonic()
            live.update(Text("\n".join(running_lines(status))))

    try:
        yield on_status
    finally:
        live.stop()
