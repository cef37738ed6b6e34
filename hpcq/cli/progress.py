"""A run on this machine as it goes, on standard error: redrawn on a terminal, a line now and then in a pipe."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hpcq.cli.formatting import requests_of
from hpcq.core.work import State
from hpcq.monitor.eta import run_progress, unit_seconds_left
from hpcq.monitor.snapshot import RunStatus, UnitStatus
from hpcq.report.table import duration

if TYPE_CHECKING:
    from rich.console import Console

REDRAW_INTERVAL_S = 1.0
PLAIN_INTERVAL_S = 15.0

Watch = Callable[[RunStatus], None]


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """Yield what to call with every new state."""
    if sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True)
        if not console.is_dumb_terminal:
            with _redrawn(console) as watch:
                yield watch
            return
    yield _PlainLines()


class _PlainLines:
    """Tells each unit's beginning and end once, and the requests now and then."""

    def __init__(self) -> None:
        self._told: dict[str, State] = {}
        self._last = time.monotonic()

    def __call__(self, status: RunStatus) -> None:
        for unit in status.units:
            before = self._told.get(unit.id, State.WAITING)
            if unit.state is not before:
                self._told[unit.id] = unit.state
                reason = f": {unit.reason}" if unit.reason else ""
                self._tell(f"{unit.id}: {unit.state}{reason}")
        if time.monotonic() - self._last >= PLAIN_INTERVAL_S:
            self._last = time.monotonic()
            for line in running_lines(status):
                self._tell(line)

    def _tell(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def running_lines(status: RunStatus) -> list[str]:
    """A line for the run, and one for each unit that runs."""
    progress = run_progress(status)
    units = f"{status.counts.get('done', 0)}/{len(status.units)} units"
    requests = f", {progress.done}/{progress.total} requests" if progress.total else ""
    left = f", about {duration(progress.seconds_left)} left" if progress.seconds_left is not None else ""
    return [f"{status.run}: {units}{requests}{left}"] + [
        f"  {unit.id}: {_going(unit)}" for unit in status.units if unit.state is State.RUNNING
    ]


def _going(unit: UnitStatus) -> str:
    left = unit_seconds_left(unit)
    parts = [requests_of(unit), unit.phase or "", f"{duration(left)} left" if left is not None else ""]
    return ", ".join(part for part in parts if part) or "starting"


@contextlib.contextmanager
def _redrawn(console: Console) -> Iterator[Watch]:
    from rich.live import Live
    from rich.text import Text

    with Live(Text("starting"), console=console, refresh_per_second=4, transient=True) as live:
        drawn = 0.0

        def watch(status: RunStatus) -> None:
            nonlocal drawn
            if time.monotonic() - drawn >= REDRAW_INTERVAL_S:
                drawn = time.monotonic()
                live.update(Text("\n".join(running_lines(status))))

        yield watch
