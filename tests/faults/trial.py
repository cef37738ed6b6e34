"""One round: a run is submitted, disturbed while it goes on, helped only as its user would, and judged when it is done.

Knows the scene and the judges. Knows no kind of fault, but draws them from what it is given.
"""

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
from tests.faults import judging
from tests.faults.kinds import Kind
from tests.faults.kinds_of_users import kill_command
from tests.faults.scene import LIVE, Scene, processes
from tests.faults.stage import FLUSH_INTERVAL_S, Undisturbed
from tests.results_data import read_datasets

POLL_INTERVAL_S = 0.3
HELPS_AT_MOST = 12
STILL_S = 20.0
"""After which the log tells what the round waits for."""
DRAWS = 15
"""Until a kind is found that can befall somebody now."""
STATUS_CODES = (0, 1)
HELD = "launch failed requeued held"
LEAVE_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a round is to be.

    faults: how many at most. interval_s: between two of them, on average. is_unattended: only such faults as need no
    user. request_s: the rehearsal's pace (None: a real model's). late_damage: what is done to the segments after the
    end. kill_submit: the first command is killed, and typed again. patience_s: how long nothing may move.
    """

    faults: int
    interval_s: float
    is_unattended: bool
    overrides: tuple[str, ...]
    request_s: float | None
    late_damage: Kind | None
    kill_submit: bool
    patience_s: float


@dataclass(kw_only=True)
class Verdict:
    """How a round ended. faults: how many of each kind. helps: how often its user had to resume it."""

    faults: dict[str, int] = field(default_factory=dict)
    helps: int = 0
    violations: list[str] = field(default_factory=list)
    repeats: judging.Repeats = field(default_factory=judging.Repeats)
    duplicate_rows: int = 0


class StalledError(Exception):
    """Nothing moved for longer than the patience."""


@dataclass(kw_only=True)
class Round:
    """Plays one round. draw: the next kind of fault. put_back: takes one that found nobody to befall."""

    scene: Scene
    plan: Plan
    manifest: Path
    journal: Path
    reference: Undisturbed
    draw: Callable[[], Kind]
    put_back: Callable[[Kind], None]
    verdict: Verdict = field(default_factory=Verdict)
    _late: bool = False
    _committed: set[Path] = field(default_factory=set)

    def play(self) -> Verdict:
        """Submit, disturb, wait and judge; leaves no job and no process behind."""
        try:
            self._submit()
            self._disturb_until_done()
            if self.plan.late_damage and self._inflict(self.plan.late_damage):
                self._merge_and_see_the_damage()
                self._late = True
                self._disturb_until_done()
            self._judge()
        except StalledError as hung:
            self.verdict.violations.append(f"hung: {hung}")
            self.scene.tell("hung", picture=self._picture())
        finally:
            self.scene.undo(everything=True)
            self._leave()
        self.verdict.violations += [f"shown to the user: {text}" for text in self.scene.tracebacks]
        return self.verdict

    def _submit(self) -> None:
        words = ["submit", str(self.manifest), *(word for item in self.plan.overrides for word in ("-O", item))]
        if self.plan.kill_submit:
            kill_command(self.scene, *words)
            self._count("SIGKILL command", "hpcq submit")
        for _ in range(HELPS_AT_MOST):
            if self.scene.type(*words).code == 0:
                return
            time.sleep(1)
        raise StalledError("submit does not succeed")

    def _disturb_until_done(self) -> None:
        next_s, moved_s, seen, told = self._after_a_while(), time.monotonic(), "", False
        while True:
            undoing = self.scene.undo()
            if time.monotonic() >= next_s and self._faults_left():
                self._inflict_one()
                next_s = self._after_a_while()
            now = self._signature()
            if now != seen:
                moved_s, seen, told = time.monotonic(), now, False
            if time.monotonic() - moved_s > STILL_S and not told:
                told = True
                self.scene.tell("still", jobs=self.scene.jobs(*LIVE), processes=self._roles())
            if time.monotonic() - moved_s > self.plan.patience_s:
                raise StalledError(f"nothing moved for {self.plan.patience_s:g} s")
            if not undoing and not self._by_hand() and self._is_still() and self._is_done_or_helped():
                return
            time.sleep(POLL_INTERVAL_S)

    def _is_still(self) -> bool:
        """Whether nothing waits or runs, or waits only for what Slurm holds."""
        jobs = self.scene.jobs(*LIVE)
        if jobs is None:
            return False
        held = [job.element for job in jobs if job.reason == HELD]
        if held and all(job.reason in (HELD, "Dependency") for job in jobs):
            self.scene.call_user(f"Slurm could not start {held}, and holds them")
            # Where it finds a job that it had forgotten, it also drains the node until an administrator has looked.
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                self.scene.cluster.resume_nodes("drain")
            return True
        return not jobs

    def _after_a_while(self) -> float:
        return time.monotonic() + self.scene.random.expovariate(1 / self.plan.interval_s)

    def _faults_left(self) -> bool:
        return not self._late and sum(self.verdict.faults.values()) < self.plan.faults

    def _inflict_one(self) -> None:
        for _ in range(DRAWS):
            kind = self.draw()
            if self._inflict(kind):
                return
            self.put_back(kind)

    def _inflict(self, kind: Kind) -> bool:
        target = kind.inflict(self.scene)
        if target is None:
            return False
        self._count(kind.name, target)
        return True

    def _count(self, name: str, target: str) -> None:
        self.verdict.faults[name] = self.verdict.faults.get(name, 0) + 1
        self.scene.tell("fault", fault=name, target=target)

    def _by_hand(self) -> bool:
        """Whether something that was started by hand still runs."""
        self.scene.by_hand = [process for process in self.scene.by_hand if process.poll() is None]
        return bool(self.scene.by_hand)

    def _is_done_or_helped(self) -> bool:
        """True when the run is done; else do what its user would do now, when nothing waits or runs any more."""
        told = self.scene.type("status", self.scene.layout.name, "--json", calm=STATUS_CODES)
        state = json.loads(told.out)["state"] if told.code in STATUS_CODES and told.out else None
        if state == "done":
            return True
        if state == "running" or not self._is_still():
            return False
        self.verdict.helps += 1
        if not self.scene.user_is_called:
            reasons = [
                f"{unit['id']} {unit['state']}: {unit['reason']}"
                for unit in json.loads(told.out or '{"units": []}')["units"]
                if unit["state"] != "done"
            ]
            self.verdict.violations.append(f"only its user could help, and no fault explains why: {reasons[:4]}")
            self.scene.call_user("said already")
        if self.verdict.helps > HELPS_AT_MOST:
            raise StalledError(f"{HELPS_AT_MOST} times resumed, and not done")
        # The first help is the plain one; should that not do, the user reads the sentence that status ends with.
        failed = ["--failed"] if self.verdict.helps > 1 else []
        self.scene.type("resume", self.scene.layout.name, *failed)
        return False

    def _signature(self) -> str:
        """What changes whenever anything of the run moves."""
        layout = self.scene.layout
        jobs = [(job.element, job.state, job.restarts) for job in self.scene.jobs(*LIVE, "COMPLETED", "FAILED") or ()]
        attempts = [_stamp(path) for path in sorted(layout.attempts.glob("*.json"))]
        journals = [_stamp(path) for path in sorted(self.journal.iterdir())]
        self._committed.update(self.scene.segments())
        return repr((jobs, attempts, journals, len(self._committed)))

    def _merge_and_see_the_damage(self) -> None:
        merged = self.scene.type("merge", self.scene.layout.name, "--json")
        aside = {item["file"] for item in merged.document["set_aside_details"]} if merged.out else set()
        if unnoticed := self.scene.damaged - aside:
            self.verdict.violations.append(f"damaged after the end, and not noticed by merge: {sorted(unnoticed)}")

    def _judge(self) -> None:
        scene, violations = self.scene, self.verdict.violations
        violations += [f"committed, and gone: {path}" for path in sorted(self._committed - set(scene.segments()))]
        merged = scene.type("merge", scene.layout.name, "--json", calm=(0,))
        if merged.code:
            return
        violations += judging.merge_violations(merged.document, self.reference.expected, scene.damaged)
        self.verdict.duplicate_rows = merged.document["duplicates"]
        data = read_datasets(scene.layout.results)
        violations += [f"not as undisturbed: {name}" for name in judging.differences(data, self.reference.data)]
        violations += judging.taken_for_bugs(scene.layout)
        if self.plan.request_s is not None:
            repeats = judging.repeats_in(judging.read_journal(self.journal), scene.forgiven, scene.full)
            self.verdict.repeats = repeats
            violations += judging.too_much_lost(
                repeats, request_s=self.plan.request_s, flush_interval_s=FLUSH_INTERVAL_S
            )

    def _picture(self) -> dict[str, object]:
        """All that may tell why a run hangs."""
        layout = self.scene.layout
        return {
            "squeue": self.scene.slurm("squeue", "--array", "--states=all"),
            "jobs": self.scene.slurm("scontrol", "show", "job"),
            "processes": self._roles(),
            "nodes": self.scene.slurm("sinfo", "--Node", "--long"),
            "attempts": {
                path.name: path.read_text(errors="replace") for path in sorted(layout.attempts.glob("*.json"))
            },
        }

    def _roles(self) -> dict[str, dict[str, int]]:
        """The processes of what Slurm takes for running."""
        return {job.element: self.scene.roles(job) for job in self.scene.jobs("RUNNING", "COMPLETING") or ()}

    def _leave(self) -> None:
        """Cancel what is left of the run, and see that no process of it outlives it."""
        for process in self.scene.by_hand:
            process.kill()
            process.wait()
        for job in self.scene.jobs(*LIVE) or ():
            self.scene.slurm("scancel", job.element)
        deadline_s = time.monotonic() + LEAVE_TIMEOUT_S
        while (left := self._processes_left()) and time.monotonic() < deadline_s:
            time.sleep(POLL_INTERVAL_S)
        for pid, words in left.items():
            # An srun whose job Slurm has lost waits for ever, and its shell for it: nothing of ours can end that.
            if not {"srun", "slurm_script"} & {Path(word).name for word in words}:
                self.verdict.violations.append(f"process {pid} outlived the run: {' '.join(words)[:300]}")
            self.scene.send(pid, signal.SIGKILL)
        while not self._nodes_are_idle() and time.monotonic() < deadline_s:
            time.sleep(POLL_INTERVAL_S)

    def _processes_left(self) -> dict[int, list[str]]:
        folder = f"{self.scene.hpcq.folder}/"
        return {
            pid: words
            for pid, words, variables in processes()
            if pid != os.getpid()
            and (any(folder in word for word in words) or f"{JOURNAL_VARIABLE}={self.journal}" in variables)
        }

    def _nodes_are_idle(self) -> bool:
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            self.scene.cluster.resume_nodes("down", "drain")
            return set(self.scene.cluster.node_states().values()) == {"idle"}
        return False


def _stamp(path: Path) -> tuple[str, int, int]:
    """What changes with a file; records are replaced while one looks."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return path.name, 0, 0
    return path.name, found.st_ino, found.st_size
