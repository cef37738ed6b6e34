"""Runs array orders on this machine through submitit's LocalExecutor: the same orders, the same jobs, no scheduler.

Knows how much of the machine may be used and which unit waits for which. Knows neither plan nor store.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcq.core.attempts import AttemptRecord, read_attempts
from hpcq.core.failures import Failure
from hpcq.core.files import storage_faults
from hpcq.core.paths import RunLayout
from hpcq.core.processes import identity
from hpcq.core.work import State
from hpcq.launch import job_script
from hpcq.launch.array_spec import ArrayOrder, Dependency, Outcome, UnitOrder
from hpcq.launch.job import UnitJob
from hpcq.launch.recovery.close_attempts import EndedJob, conclude, did_not_begin

POLL_INTERVAL_S = 0.2
PATIENCE_S = 10.0
"""Seconds between the request to stop and the order to."""

_WITHOUT_A_WORD = "its process ended without a word: killed, or out of memory"
_TEN_YEARS_MIN = 10 * 365 * 24 * 60
_BROKEN = (State.FAILED, State.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What of this machine the run may use. parallel_units: at once, at most (None: as many as fit)."""

    cores: int
    memory_gib: float
    gpus: int = 0
    parallel_units: int | None = None


@dataclass(kw_only=True)
class _Task:
    """One unit on its way. `job` is submitit's."""

    order: ArrayOrder
    index: int
    job: Any = None
    gpus: tuple[int, ...] = ()

    @property
    def unit(self) -> UnitOrder:
        return self.order.units[self.index]


def _ignore(_outcome: Outcome) -> None:
    pass


def _do_nothing() -> None:
    pass


@dataclass
class LocalLauncher:
    """Runs orders of the run that lies at `layout` to their end.

    on_change: called with each unit that begins (running) and ends. on_poll: called in between, five times a second.
    """

    layout: RunLayout
    machine: Machine
    on_change: Callable[[Outcome], None] = _ignore
    on_poll: Callable[[], None] = _do_nothing
    _waiting: list[_Task] = field(init=False, default_factory=list)
    _running: list[_Task] = field(init=False, default_factory=list)
    _outcomes: dict[str, Outcome] = field(init=False, default_factory=dict)

    def run(self, arrays: Sequence[ArrayOrder]) -> dict[str, Outcome]:
        """Run every unit of `arrays`, in order where nothing else is said, and return how each ended.

        Dependencies on arrays that are not among `arrays` count as fulfilled. Whatever ends this call early (Ctrl-C, an
        error of a callback) first stops what runs; the run can be taken up again.
        """
        by_name = {order.name: order for order in arrays}
        self._waiting = [_Task(order=order, index=index) for order in arrays for index in range(len(order.units))]
        self._running, self._outcomes = [], {}
        with storage_faults(self.layout.launcher_logs):
            self.layout.launcher_logs.mkdir(parents=True, exist_ok=True)
        try:
            while self._waiting or self._running:
                self._collect()
                self._advance(by_name)
                self.on_poll()
                if self._running:
                    time.sleep(POLL_INTERVAL_S)
        finally:
            self._stop()
        return dict(self._outcomes)

    def _settle(self, task: _Task, state: State, reason: str | None = None) -> None:
        outcome = Outcome(unit_id=task.unit.unit_id, state=state, reason=reason)
        self._outcomes[outcome.unit_id] = outcome
        self.on_change(outcome)

    def _advance(self, by_name: dict[str, ArrayOrder]) -> None:
        for task in list(self._waiting):
            needed = list(_needed(task, by_name))
            broken = None if task.order.dependency is Dependency.AFTERANY else self._broken(needed)
            if broken:
                self._waiting.remove(task)
                self._settle(task, State.CANCELLED, f"{broken.unit_id} {broken.state}: {broken.reason}")
            elif all(self._has_ended(unit) for unit in needed) and fits(
                task.order, [running.order for running in self._running], self.machine
            ):
                self._waiting.remove(task)
                self._start(task)

    def _has_ended(self, unit: str) -> bool:
        return unit in self._outcomes and self._outcomes[unit].state is not State.RUNNING

    def _broken(self, needed: Sequence[str]) -> Outcome | None:
        found = (self._outcomes.get(unit) for unit in needed)
        return next((outcome for outcome in found if outcome and outcome.state in _BROKEN), None)

    def _start(self, task: _Task) -> None:
        from submitit.local.local import LocalExecutor

        order, unit = task.order, task.unit
        # A folder of its own: submitit's files are named by process id alone, and process ids come again.
        with storage_faults(self.layout.launcher_logs):
            folder = Path(tempfile.mkdtemp(prefix=f"{unit.unit_id}.", dir=self.layout.launcher_logs))
        environment = folder / "environment.sh"
        job_script.write_environment(
            environment,
            order.environment,
            threads=order.cpus_per_unit,
            package_path=job_script.package_path(self.layout.folder),
        )
        # Not through submitit's `setup`: it puts a shell between, which neither forwards signals nor has the job's id.
        command = ["bash", str(job_script.script("enter.sh")), str(environment), order.environment.python]
        executor = LocalExecutor(folder=folder, python=shlex.join(command))
        taken = {gpu for running in self._running for gpu in running.gpus}
        free = [gpu for gpu in range(self.machine.gpus) if gpu not in taken]
        task.gpus = tuple(free[: order.gpus_per_node])
        executor.update_parameters(
            timeout_min=_TEN_YEARS_MIN, gpus_per_node=len(task.gpus), visible_gpus=task.gpus, tasks_per_node=1
        )
        with _interrupts_held():
            task.job = executor.submit(UnitJob.of(order, unit, self.layout))
            self._running.append(task)
        self._settle(task, State.RUNNING)

    def _collect(self) -> None:
        for task in [task for task in self._running if task.job.done()]:
            self._running.remove(task)
            record = self._record(task) or self._did_not_begin(task)
            if record.outcome == "done":
                self._settle(task, State.DONE)
            elif record.outcome == "interrupted":
                self._settle(task, State.FAILED, record.reason)
            else:
                self._retry(task, record)

    def _retry(self, task: _Task, record: AttemptRecord) -> None:
        """Start the unit again where its record, or the lack of a last word in it, says that this may help."""
        record, decision = conclude(
            self.layout, record, task.order.retries, failure=Failure.KILLED, reason=_WITHOUT_A_WORD
        )
        if decision.action.goes_on:
            self._waiting.insert(0, _Task(order=task.order, index=task.index))
        else:
            self._settle(task, State.FAILED, record.reason)

    def _did_not_begin(self, task: _Task) -> AttemptRecord:
        """Write down the attempt in the job's stead, so that later commands know why there is none."""
        log = str(task.job.paths.stderr)
        job = EndedJob(job_id=str(task.job.job_id), launcher="local", node=socket.gethostname(), log=log)
        return did_not_begin(self.layout, task.unit.unit_id, job, Failure.LACKING)

    def _record(self, task: _Task) -> AttemptRecord | None:
        """What the job wrote of the attempt that is `task`, if it came so far."""
        records = read_attempts(self.layout.attempts).get(task.unit.unit_id, [])
        host, job_id = socket.gethostname(), str(task.job.job_id)
        return next((r for r in reversed(records) if (r.node, r.job_id) == (host, job_id)), None)

    def _stop(self) -> None:
        """Ask what runs to stop, then make it; controllers pass SIGTERM on, and units leave with a record."""
        deadline = time.monotonic() + PATIENCE_S
        while self._running and time.monotonic() < deadline:
            for task in self._running:
                _signal(int(task.job.job_id), signal.SIGTERM)
            time.sleep(POLL_INTERVAL_S)
            # Not `job.done()`: that is true from the moment the result is written, while the process still leaves.
            self._running = [task for task in self._running if identity(int(task.job.job_id))]
        for task in self._running:
            record = self._record(task)
            for process in (int(task.job.job_id), *([record.pid] if record else [])):
                _signal(process, signal.SIGKILL)
        self._running = []


def fits(order: ArrayOrder, running: Sequence[ArrayOrder], machine: Machine) -> bool:
    """Whether a unit of `order` may begin beside those of the orders in `running`.

    One that wants more than the machine has runs alone: it may succeed, and waiting would not help it.
    """
    together = [*running, order]
    return not running or (
        sum(one.cpus_per_unit for one in together) <= machine.cores
        and sum(one.memory_gib or 0.0 for one in together) <= machine.memory_gib
        and sum(one.gpus_per_node for one in together) <= machine.gpus
        and (machine.parallel_units is None or len(together) <= machine.parallel_units)
        and (order.throttle is None or sum(one is order for one in together) <= order.throttle)
    )


def _needed(task: _Task, by_name: dict[str, ArrayOrder]) -> Iterator[str]:
    """Ids of the units that `task` waits for."""
    if task.order.dependency is Dependency.NONE:
        return
    for name in task.order.depends_on:
        if name not in by_name:
            continue
        units = by_name[name].units
        if task.order.dependency is Dependency.AFTERCORR:
            units = units[task.index : task.index + 1]
        elif task.order.element is not None:
            units = units[task.order.element : task.order.element + 1]
        for unit in units:
            yield unit.unit_id


def _signal(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start children with SIGINT and SIGHUP blocked, which they inherit: a terminal sends them to the whole group.

    Without this each child would die of it on its own, submitit's controllers with a traceback on the user's terminal;
    so it comes to the launcher alone, which stops its units in order. One that comes now is delivered afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
