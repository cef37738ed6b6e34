"""Local launcher: run arrays on this machine, with the jobs of Slurm."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field, replace
from pathlib import Path

from hpcq.core.attempts import AttemptRecord, read_attempts
from hpcq.core.failures import Failure
from hpcq.core.files import storage_errors
from hpcq.core.frozen import dataclass
from hpcq.core.outcomes import Launcher, Outcome
from hpcq.core.paths import RunLayout
from hpcq.core.permissions import trust_of
from hpcq.core.processes import find, kill_tree, signal_process, wait_for_exit
from hpcq.core.work_records import UnitState
from hpcq.launch import job_script
from hpcq.launch.array_spec import ArraySpec, Dependency, UnitResult, UnitSpec
from hpcq.launch.job import LAUNCHER_VARIABLE, UnitJob
from hpcq.launch.package_snapshot import make_snapshot
from hpcq.launch.recovery.end_attempts import EndedJob, close_and_decide, record_failed_start, record_interrupted
from hpcq.launch.submission_files import job_command, write_records
from hpcq.launch.visible_gpus import VisibleGpus

POLL_INTERVAL_S = 0.2
STOP_TIMEOUT_S = 10.0
"""Seconds between SIGTERM and SIGKILL."""

_NO_REASON = "its process exited without reporting a reason: killed, or out of memory"
_FAILED_STATES = (UnitState.FAILED, UnitState.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class LocalResources:
    """Resources of this machine that the run may use.

    Attributes:
        gpus: Each is given to one unit at a time.
        parallel_units: Maximum number of units that run at the same time. None: no limit.
    """

    cores: int
    memory_gib: float
    gpus: VisibleGpus = field(default_factory=VisibleGpus)
    parallel_units: int | None = None


@dataclass(kw_only=True)
class _Task:
    """A unit that is pending or running."""

    array: ArraySpec
    index: int
    process: subprocess.Popen[bytes] | None = None
    log: Path = Path()
    gpus: tuple[str, ...] = ()

    @property
    def unit(self) -> UnitSpec:
        return self.array.units[self.index]


def _ignore(_result: UnitResult) -> None:
    pass


def _do_nothing() -> None:
    pass


@dataclass
class LocalLauncher:
    """Runs arrays of the run at `layout` to completion.

    Attributes:
        resources: Resources that the units may use in total.
        on_change: Called each time a unit starts (state RUNNING) or ends.
        on_poll: Called five times per second while units run.
    """

    layout: RunLayout
    resources: LocalResources
    on_change: Callable[[UnitResult], None] = _ignore
    on_poll: Callable[[], None] = _do_nothing
    _pending: list[_Task] = field(init=False, default_factory=list)
    _running: list[_Task] = field(init=False, default_factory=list)
    _results: dict[str, UnitResult] = field(init=False, default_factory=dict)

    def run(self, arrays: Sequence[ArraySpec]) -> dict[str, UnitResult]:
        """Run all units of `arrays`, in order unless dependencies require otherwise, and return the result of each.

        Dependencies on arrays that are not in `arrays` count as satisfied. If this call ends early (Ctrl-C, an error in
        a callback), it first stops the running units; the run can be resumed.
        """
        by_name = {array.name: array for array in arrays}
        self._pending = [_Task(array=array, index=index) for array in arrays for index in range(len(array.units))]
        self._running, self._results = [], {}
        with storage_errors(self.layout.launcher_logs):
            self.layout.launcher_logs.mkdir(parents=True, exist_ok=True)
        try:
            while self._pending or self._running:
                self._collect()
                self._start_ready(by_name)
                self.on_poll()
                if self._running:
                    time.sleep(POLL_INTERVAL_S)
        finally:
            self._stop()
        return dict(self._results)

    def _set_result(self, task: _Task, state: UnitState, reason: str | None = None) -> None:
        result = UnitResult(unit_id=task.unit.unit_id, state=state, reason=reason)
        self._results[result.unit_id] = result
        self.on_change(result)

    def _start_ready(self, by_name: dict[str, ArraySpec]) -> None:
        for task in list(self._pending):
            needed = list(_needed(task, by_name))
            failed = None if task.array.dependency is Dependency.AFTERANY else self._first_failed(needed)
            if failed:
                self._pending.remove(task)
                self._set_result(task, UnitState.CANCELLED, f"{failed.unit_id} {failed.state}: {failed.reason}")
            elif all(self._has_ended(unit) for unit in needed) and fits(
                task.array, [running.array for running in self._running], self.resources
            ):
                self._pending.remove(task)
                self._start(task)

    def _has_ended(self, unit: str) -> bool:
        return unit in self._results and self._results[unit].state is not UnitState.RUNNING

    def _first_failed(self, needed: Sequence[str]) -> UnitResult | None:
        found = (self._results.get(unit) for unit in needed)
        return next((result for result in found if result and result.state in _FAILED_STATES), None)

    def _start(self, task: _Task) -> None:
        array, unit = task.array, task.unit
        with storage_errors(self.layout.launcher_logs):
            folder = Path(tempfile.mkdtemp(prefix=f"{unit.unit_id}.", dir=self.layout.launcher_logs))
        used = {gpu for running in self._running for gpu in running.gpus}
        free = [gpu for gpu in self.resources.gpus.names if gpu not in used]
        task.gpus, task.log = tuple(free[: array.gpus_per_node]), folder / "job.log"
        variables = (*self.resources.gpus.variables(task.gpus), *array.environment.variables)
        environment = folder / "environment.sh"
        job_script.write_environment(
            environment,
            replace(array.environment, variables=variables),
            threads=array.cpus_per_unit,
            snapshot=make_snapshot(self.layout, array.plugins),
        )
        write_records(folder, [UnitJob.from_spec(array, unit, self.layout)])
        enter = ["bash", str(job_script.script("enter.sh")), str(environment), array.environment.python]
        with _interrupts_blocked():
            task.process = start_process(job_command(enter, folder, 0), task.log, trust_of(self.layout).variables())
            self._running.append(task)
        self._set_result(task, UnitState.RUNNING)

    def _collect(self) -> None:
        for task in [task for task in self._running if _has_exited(task)]:
            self._running.remove(task)
            record = self._record(task) or self._record_failed_start(task)
            if record.outcome is Outcome.DONE:
                self._set_result(task, UnitState.DONE)
            elif record.outcome is Outcome.INTERRUPTED:
                self._set_result(task, UnitState.FAILED, record.reason)
            else:
                self._retry_or_fail(task, record)

    def _retry_or_fail(self, task: _Task, record: AttemptRecord) -> None:
        """Close the attempt and start the unit again if the retry policy says so."""
        record, decision = close_and_decide(
            self.layout, record, task.array.retries, failure=Failure.KILLED, reason=_NO_REASON
        )
        if decision.action.is_retry:
            self._pending.insert(0, _Task(array=task.array, index=task.index))
        else:
            self._set_result(task, UnitState.FAILED, record.reason)

    def _record_failed_start(self, task: _Task) -> AttemptRecord:
        """Record the attempt on behalf of the job, so that later commands report why the unit did not start."""
        job = EndedJob(job_id=_job_id(task), launcher=Launcher.LOCAL, node=socket.gethostname(), log=str(task.log))
        return record_failed_start(self.layout, task.unit.unit_id, job, Failure.MISSING_RESOURCE)

    def _record(self, task: _Task) -> AttemptRecord | None:
        """Return the record that the job of `task` wrote; None if it did not get that far."""
        records = read_attempts(self.layout.attempts).get(task.unit.unit_id, [])
        host, job_id = socket.gethostname(), _job_id(task)
        return next((one for one in reversed(records) if (one.node, one.job_id) == (host, job_id)), None)

    def _stop(self) -> None:
        """Stop running units: send SIGTERM, after which they write their records, then SIGKILL."""
        running = [process for task in self._running if (process := find(int(_job_id(task))))]
        for process in running:
            signal_process(process, signal.SIGTERM)
        for process in wait_for_exit(running, STOP_TIMEOUT_S):
            kill_tree(process)
        for task in self._running:
            _has_exited(task)  # reaps it
            record = self._record(task)
            if record and record.outcome in (Outcome.RUNNING, Outcome.INTERRUPTED):
                record_interrupted(self.layout, record)
        self._running = []


def start_process(command: Sequence[str], log: Path, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a unit's process, with its output from before the unit starts in `log`."""
    environment = {**os.environ, **variables, LAUNCHER_VARIABLE: Launcher.LOCAL}
    with log.open("xb") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)


def _has_exited(task: _Task) -> bool:
    return task.process is None or task.process.poll() is not None


def _job_id(task: _Task) -> str:
    """Return the id of a started task: that of its process, which the shell replaces by the unit's interpreter."""
    return str(task.process.pid) if task.process else ""


def fits(array: ArraySpec, running: Sequence[ArraySpec], resources: LocalResources) -> bool:
    """Whether a unit of `array` fits while one unit of each array in `running` runs.

    A unit that needs more than the machine has runs alone: it may succeed, and waiting would not help.
    """
    together = [*running, array]
    return not running or (
        sum(one.cpus_per_unit for one in together) <= resources.cores
        and sum(one.memory_gib or 0.0 for one in together) <= resources.memory_gib
        and sum(one.gpus_per_node for one in together) <= len(resources.gpus.names)
        and (resources.parallel_units is None or len(together) <= resources.parallel_units)
        and (array.throttle is None or sum(one is array for one in together) <= array.throttle)
    )


def _needed(task: _Task, by_name: dict[str, ArraySpec]) -> Iterator[str]:
    """Yield the ids of the units that `task` depends on."""
    if task.array.dependency is Dependency.NONE:
        return
    for name in task.array.depends_on:
        if name not in by_name:
            continue
        units = by_name[name].units
        if task.array.dependency is Dependency.AFTERCORR:
            units = units[task.index : task.index + 1]
        elif task.array.element is not None:
            units = units[task.array.element : task.array.element + 1]
        for unit in units:
            yield unit.unit_id


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block SIGINT and SIGHUP while children start, which inherit the mask: a terminal signals the whole process group.

    Without the mask each child would die on its own. With it only the launcher receives the signal and stops its units
    in order. A signal that arrives while blocked is delivered afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
