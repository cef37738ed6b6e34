"""One trial: submit a run, inject faults while it is active, resume it only as its user would, then check it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hpcq.evaluate.backends.synthetic import JOURNAL_VARIABLE
from hpcq.store.segments import SegmentName
from hpcq.store.unit_folder import read_folder
from tests.faults import invariants
from tests.faults.fault_kinds.table import KILLED_COMMAND, FaultKind
from tests.faults.fault_kinds.users import kill_command
from tests.faults.fixtures import FLUSH_INTERVAL_S, Reference
from tests.faults.system_under_test import ACTIVE_STATES, SystemUnderTest, processes
from tests.results_data import read_datasets

POLL_INTERVAL_S = 0.3
MAX_RESUMES = 12
QUIET_S = 20.0
"""Seconds without progress after which the log shows the jobs and processes that the trial waits for."""
MAX_DRAWS = 15
"""Fault kinds to draw until one has a target."""
STATUS_CODES = (0, 1)
LAUNCH_FAILED = "launch failed requeued held"
CLEAN_UP_TIMEOUT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """Parameters of a trial.

    Attributes:
        faults: Maximum number of faults.
        mean_interval_s: Mean seconds between two faults.
        is_unattended: Only faults from which the run recovers without its user.
        overrides: Arguments of `-O`.
        request_s: Seconds per request of the synthetic workload. None: a real model.
        damage_after_run: Damages segments when the run is done. None: no damage then.
        kill_submit: Kill the first `hpcq submit`, then submit again.
        stall_timeout_s: Seconds without progress after which the run is considered hung.
    """

    faults: int
    mean_interval_s: float
    is_unattended: bool
    overrides: tuple[str, ...]
    request_s: float | None
    damage_after_run: FaultKind | None
    kill_submit: bool
    stall_timeout_s: float


@dataclass(kw_only=True)
class TrialResult:
    """Result of a trial.

    Attributes:
        faults: Number of injected faults of each kind.
        resumes: How often the user had to resume the run.
        violations: Violated invariants.
        repeats: Requests that were answered more than once.
        duplicate_rows: Rows that the merge found more than once.
    """

    faults: dict[str, int] = field(default_factory=dict)
    resumes: int = 0
    violations: list[str] = field(default_factory=list)
    repeats: invariants.RepeatedAnswers = field(default_factory=invariants.RepeatedAnswers)
    duplicate_rows: int = 0


class StalledError(Exception):
    """The run made no progress within the timeout."""


@dataclass(kw_only=True)
class Trial:
    """Runs one trial.

    Attributes:
        system: The system that faults are injected into.
        plan: Parameters of the trial.
        manifest: Manifest of the run.
        journal: Folder of the synthetic backend's journals.
        reference: Results without faults.
        draw: Returns the next fault kind.
        put_back: Takes a fault kind that had no target.
        result: Result so far.
    """

    system: SystemUnderTest
    plan: TrialPlan
    manifest: Path
    journal: Path
    reference: Reference
    draw: Callable[[], FaultKind]
    put_back: Callable[[FaultKind], None]
    result: TrialResult = field(default_factory=TrialResult)
    _injection_ended: bool = False
    _committed: set[Path] = field(default_factory=set)

    def run(self) -> TrialResult:
        """Submit, inject, wait and check. Leaves no job and no process."""
        try:
            self._submit()
            self._inject_until_done()
            if self.plan.damage_after_run and self._inject(self.plan.damage_after_run):
                self._check_damage_is_reported()
                self._injection_ended = True
                self._inject_until_done()
            self._check_invariants()
        except StalledError as error:
            self.result.violations.append(f"hung: {error}")
            self.system.log("hung", diagnostics=self._diagnostics())
        finally:
            self.system.undo_due(force=True)
            self._clean_up()
        self.result.violations += [f"shown to the user: {text}" for text in self.system.output_errors]
        return self.result

    def _submit(self) -> None:
        options = (word for item in self.plan.overrides for word in ("-O", item))
        arguments = ["submit", str(self.manifest), *options]
        if self.plan.kill_submit:
            kill_command(self.system, *arguments)
            self._record_fault(KILLED_COMMAND, "hpcq submit")
        for _ in range(MAX_RESUMES):
            if self.system.run_command(*arguments).code == 0:
                return
            time.sleep(1)
        raise StalledError(f"hpcq submit failed {MAX_RESUMES} times")

    def _inject_until_done(self) -> None:
        next_s, progress_s, seen, is_logged = self._next_injection_s(), time.monotonic(), "", False
        while True:
            undo_pending = self.system.undo_due()
            if time.monotonic() >= next_s and self._faults_left():
                self._inject_next()
                next_s = self._next_injection_s()
            current = self._progress_signature()
            if current != seen:
                progress_s, seen, is_logged = time.monotonic(), current, False
            if time.monotonic() - progress_s > QUIET_S and not is_logged:
                is_logged = True
                self.system.log("quiet", jobs=self.system.jobs(*ACTIVE_STATES), processes=self._processes_by_job())
            if time.monotonic() - progress_s > self.plan.stall_timeout_s:
                raise StalledError(f"no progress for {self.plan.stall_timeout_s:g} s")
            if not undo_pending and not self._duplicate_jobs_run() and self._is_idle() and self._is_done_else_resume():
                return
            time.sleep(POLL_INTERVAL_S)

    def _is_idle(self) -> bool:
        """Whether no job is active, or all depend on jobs that Slurm holds."""
        jobs = self.system.jobs(*ACTIVE_STATES)
        if jobs is None:
            return False
        held = [job.element for job in jobs if job.reason == LAUNCH_FAILED]
        if held and all(job.reason in (LAUNCH_FAILED, "Dependency") for job in jobs):
            self.system.expect_intervention(f"Slurm could not start {held}, and holds them")
            # If slurmctld finds a job that it had lost, it also drains the node until an administrator resumes it.
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                self.system.cluster.resume_nodes("drain")
            return True
        return not jobs

    def _next_injection_s(self) -> float:
        return time.monotonic() + self.system.random.expovariate(1 / self.plan.mean_interval_s)

    def _faults_left(self) -> bool:
        return not self._injection_ended and sum(self.result.faults.values()) < self.plan.faults

    def _inject_next(self) -> None:
        for _ in range(MAX_DRAWS):
            kind = self.draw()
            if self._inject(kind):
                return
            self.put_back(kind)

    def _inject(self, kind: FaultKind) -> bool:
        target = kind.inject(self.system)
        if target is None:
            return False
        self._record_fault(kind.name, target)
        return True

    def _record_fault(self, name: str, target: str) -> None:
        self.result.faults[name] = self.result.faults.get(name, 0) + 1
        self.system.log("fault", fault=name, target=target)

    def _duplicate_jobs_run(self) -> bool:
        self.system.duplicate_jobs = [process for process in self.system.duplicate_jobs if process.poll() is None]
        return bool(self.system.duplicate_jobs)

    def _is_done_else_resume(self) -> bool:
        """Return True if the run is done. Otherwise resume it as its user would, if no job is active."""
        status = self.system.run_command("status", self.system.layout.name, "--json", expected_codes=STATUS_CODES)
        state = json.loads(status.out)["state"] if status.code in STATUS_CODES and status.out else None
        if state == "done":
            return True
        if state == "running" or not self._is_idle():
            return False
        self.result.resumes += 1
        if not self.system.intervention_reasons:
            reasons = [
                f"{unit['id']} {unit['state']}: {unit['reason']}"
                for unit in json.loads(status.out or '{"units": []}')["units"]
                if unit["state"] != "done"
            ]
            self.result.violations.append(f"needs `hpcq resume`, but no injected fault explains it: {reasons[:4]}")
            self.system.expect_intervention("reported already")
        if self.result.resumes > MAX_RESUMES:
            raise StalledError(f"not done after {MAX_RESUMES} resumes")
        # First without options; if that does not help, the user follows the hint at the end of the status.
        options = ["--failed"] if self.result.resumes > 1 else []
        self.system.run_command("resume", self.system.layout.name, *options)
        return False

    def _progress_signature(self) -> str:
        """Return a string that changes with every progress of the run."""
        layout = self.system.layout
        jobs = [
            (job.element, job.state, job.restarts)
            for job in self.system.jobs(*ACTIVE_STATES, "COMPLETED", "FAILED") or ()
        ]
        attempts = [_file_version(path) for path in sorted(layout.attempts.glob("*.json"))]
        journals = [_file_version(path) for path in sorted(self.journal.iterdir())]
        self._committed.update(self.system.segments())
        return repr((jobs, attempts, journals, len(self._committed)))

    def _check_damage_is_reported(self) -> None:
        merged = self.system.run_command("merge", self.system.layout.name, "--json")
        set_aside = {item["file"] for item in merged.document["set_aside_details"]} if merged.out else set()
        if missing := self.system.damaged_segments - set_aside:
            self.result.violations.append(f"damaged after the run, but not set aside by merge: {sorted(missing)}")

    def _check_invariants(self) -> None:
        system, violations = self.system, self.result.violations
        gone = {path for path in self._committed - set(system.segments()) if SegmentName.parse(path.name)}
        compacted = {
            folder / name for folder in {path.parent for path in gone} for name in read_folder(folder).segments
        }
        violations += [f"committed segment is missing: {path}" for path in sorted(gone - compacted)]
        merged = system.run_command("merge", system.layout.name, "--json", expected_codes=(0,))
        if merged.code:
            return
        violations += invariants.merge_violations(merged.document, self.reference.expected, system.damaged_segments)
        self.result.duplicate_rows = merged.document["duplicates"]
        data = read_datasets(system.layout.results)
        violations += [
            f"differs from the reference: {name}" for name in invariants.differing_datasets(data, self.reference.data)
        ]
        violations += invariants.misclassified_attempts(system.layout)
        if self.plan.request_s is not None:
            repeats = invariants.count_repeated_answers(
                invariants.read_journals(self.journal), system.damaged_requests, system.disk_full_periods_s
            )
            self.result.repeats = repeats
            violations += invariants.excessive_losses(
                repeats, request_s=self.plan.request_s, flush_interval_s=FLUSH_INTERVAL_S
            )

    def _diagnostics(self) -> dict[str, object]:
        """Return everything that may explain why a run hangs."""
        layout = self.system.layout
        return {
            "squeue": self.system.slurm("squeue", "--array", "--states=all"),
            "jobs": self.system.slurm("scontrol", "show", "job"),
            "processes": self._processes_by_job(),
            "nodes": self.system.slurm("sinfo", "--Node", "--long"),
            "attempts": {
                path.name: path.read_text(errors="replace") for path in sorted(layout.attempts.glob("*.json"))
            },
        }

    def _processes_by_job(self) -> dict[str, dict[str, int]]:
        """Return the processes of each job that Slurm lists as running."""
        return {job.element: self.system.pids_by_role(job) for job in self.system.jobs("RUNNING", "COMPLETING") or ()}

    def _clean_up(self) -> None:
        """Cancel the remaining jobs and check that no process outlives the run."""
        for process in self.system.duplicate_jobs:
            process.kill()
            process.wait()
        for job in self.system.jobs(*ACTIVE_STATES) or ():
            self.system.slurm("scancel", job.element)
        deadline_s = time.monotonic() + CLEAN_UP_TIMEOUT_S
        while (remaining := self._remaining_processes()) and time.monotonic() < deadline_s:
            time.sleep(POLL_INTERVAL_S)
        for pid, arguments in remaining.items():
            # The srun of a job that Slurm has lost waits forever, and the batch shell for it. hpcq cannot prevent this.
            if not {"srun", "slurm_script"} & {Path(argument).name for argument in arguments}:
                self.result.violations.append(f"process {pid} outlived the run: {' '.join(arguments)[:300]}")
            self.system.send_signal(pid, signal.SIGKILL)
        while not self._nodes_are_idle() and time.monotonic() < deadline_s:
            time.sleep(POLL_INTERVAL_S)

    def _remaining_processes(self) -> dict[int, list[str]]:
        folder = f"{self.system.hpcq.folder}/"
        return {
            pid: arguments
            for pid, arguments, variables in processes()
            if pid != os.getpid()
            and (any(folder in argument for argument in arguments) or f"{JOURNAL_VARIABLE}={self.journal}" in variables)
        }

    def _nodes_are_idle(self) -> bool:
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            self.system.cluster.resume_nodes("down", "drain")
            return set(self.system.cluster.node_states().values()) == {"idle"}
        return False


def _file_version(path: Path) -> tuple[str, int, int]:
    """Return what changes when a file is written or replaced. Records may be replaced at any time."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return path.name, 0, 0
    return path.name, found.st_ino, found.st_size
