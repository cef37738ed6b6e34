"""Fault campaign: trials on virtual clusters, drawn from one seed, until a time or a number of faults is reached."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hpcq.core import environments
from hpcq.core.paths import RunLayout
from tests.command_line import Hpcq
from tests.conftest import OFFLINE, TESTS
from tests.faults import fixtures
from tests.faults.fault_kinds.table import AFTER_RUN, FAULT_KINDS, KILLED_COMMAND, FaultKind
from tests.faults.fixtures import Reference, Workload
from tests.faults.reporting import CampaignSummary, EventLog
from tests.faults.system_under_test import SystemUnderTest
from tests.faults.trial import Trial, TrialPlan, TrialResult
from tests.slurm.cluster import VirtualCluster

TRIALS_PER_CLUSTER = 8
STALL_TIMEOUT_S = 260.0
"""Longer than the time limit of the synthetic workload's jobs, after which Slurm ends jobs that it has lost."""
_CORE = Path(sys.executable)


def set_environment() -> None:
    """Let all subprocesses find hpcq and Slurm's daemons, and disable network access of libraries."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    python_path = os.pathsep.join(filter(None, [str(TESTS.parent), os.environ.get("PYTHONPATH")]))
    os.environ.update(OFFLINE, PATH=path, PYTHONPATH=python_path)


class FaultSampler:
    """Draws fault kinds in random order. In the long run all are drawn equally often."""

    def __init__(self, kinds: Sequence[FaultKind], random_source: random.Random) -> None:
        self._kinds = kinds
        self._random = random_source
        self._queue: list[FaultKind] = []

    def draw(self) -> FaultKind:
        """Return the next kind."""
        if len(self._queue) <= len(self._kinds) // 2:
            more = [kind for kind in self._kinds if kind not in self._queue]
            self._queue += self._random.sample(more, len(more))
        return self._queue.pop(0)

    def put_back(self, kind: FaultKind) -> None:
        """Keep a kind that has no target at present for later."""
        if kind not in self._queue:
            self._queue.append(kind)


@dataclass(kw_only=True)
class Campaign:
    """A campaign.

    Attributes:
        seed: Seed of all random choices.
        folder: Folder of all files. A trial's own folder is removed if it has no violation.
        seconds: Duration. The current trial is completed.
        faults: Maximum number of faults. None: no limit.
        models: Share of trials with the real model.
        stall_timeout_s: Seconds without progress after which a run is considered hung.
        kinds: Names of the fault kinds.
        summary: Totals so far.
    """

    seed: int
    folder: Path
    seconds: float
    faults: int | None = None
    models: float = 0.0
    stall_timeout_s: float = STALL_TIMEOUT_S
    kinds: Sequence[str] = tuple(FAULT_KINDS)
    summary: CampaignSummary = field(default_factory=CampaignSummary)
    _references: dict[str, Reference] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - reproducible, not secret
        self._log = EventLog(path=self.folder / "campaign.jsonl")
        self._can_mount = fixtures.can_mount(self.folder / "mount")
        self._started_s = time.monotonic()
        kinds = [FAULT_KINDS[name] for name in self.kinds]
        self._sampler = FaultSampler(kinds, self._random)
        self._unattended_sampler = FaultSampler([kind for kind in kinds if not kind.needs_user], self._random)

    def run(self) -> CampaignSummary:
        """Run trials until a limit is reached."""
        for workload in (fixtures.SYNTHETIC, *([fixtures.REAL] if self.models else [])):
            self._references[workload.name] = self._run_reference(workload)
        while not self._is_finished():
            settings, grace_s = self._draw_cluster()
            with VirtualCluster(settings=settings, grace_s=grace_s) as cluster:
                self._log.write("cluster", settings=settings, grace_s=grace_s)
                for _ in range(TRIALS_PER_CLUSTER):
                    if self._is_finished() or not self._run_trial(cluster):
                        break
        return self.summary

    @property
    def elapsed_s(self) -> float:
        """Seconds since the campaign started."""
        return time.monotonic() - self._started_s

    def _is_finished(self) -> bool:
        enough_faults = self.faults is not None and self.summary.faults.total() >= self.faults
        return enough_faults or self.elapsed_s >= self.seconds

    def _draw_cluster(self) -> tuple[dict[str, str], int]:
        """Draw settings with or without preempt_send_user_signal, and a short or long grace time in seconds."""
        sends_signal = self._random.random() < 0.5
        settings = {"KillWait": "3", "SlurmdTimeout": "6", "BatchStartTimeout": "5"}
        settings["SlurmctldParameters"] = "preempt_send_user_signal" if sends_signal else "enable_configless"
        return settings, self._random.choice((1, 4, 15))

    def _run_reference(self, workload: Workload) -> Reference:
        folder = self.folder / f"reference {workload.name}".replace(" ", "-")
        folder.mkdir()
        return fixtures.run_reference(workload, Hpcq(python=_CORE, folder=folder), _pythons(workload))

    def _run_trial(self, cluster: VirtualCluster) -> bool:
        """Run a trial; return whether the cluster can be used for another one."""
        workload = fixtures.REAL if self._random.random() < self.models else fixtures.SYNTHETIC
        number = self.summary.trials + 1
        folder = self.folder / f"trial-{number:04d}"
        (folder / "journal").mkdir(parents=True)
        random_source = random.Random(f"{self.seed} {number}")  # noqa: S311 - reproducible, not secret
        plan = self._draw_plan(workload, folder, random_source)
        self._log.write("trial", number=number, workload=workload.name, plan=plan)
        started_s = time.monotonic()
        sampler = self._unattended_sampler if plan.is_unattended else self._sampler
        with contextlib.ExitStack() as stack:
            system = self._set_up(workload, folder, random_source, cluster, stack)
            result = Trial(
                system=system,
                plan=plan,
                manifest=folder / "manifest.toml",
                journal=folder / "journal",
                reference=self._references[workload.name],
                draw=sampler.draw,
                put_back=sampler.put_back,
            ).run()
            if result.violations:
                shutil.copytree(cluster.folder / "log", folder / "slurm")
            if result.violations and system.small_disk:
                shutil.copytree(system.small_disk, folder / "runs-copy", symlinks=True)
        self._report(number, result, plan, time.monotonic() - started_s)
        if not result.violations:
            shutil.rmtree(folder)
        return not result.violations

    def _report(self, number: int, result: TrialResult, plan: TrialPlan, seconds: float) -> None:
        self.summary.add(result, plan.request_s)
        self._log.write("result", number=number, seconds=round(seconds, 1), result=result)
        sys.stdout.write(
            f"trial {number}: {sum(result.faults.values())} faults in {seconds:.0f} s, resumed {result.resumes} times"
            f"{''.join(f'{os.linesep}  VIOLATION {item}' for item in result.violations)}\n"
        )
        sys.stdout.flush()

    def _draw_plan(self, workload: Workload, folder: Path, random_source: random.Random) -> TrialPlan:
        """Draw the parameters of a trial and write its manifest."""
        shards = random_source.randint(1, 3) if workload.is_real else random_source.randint(3, 7)
        unit_s = random_source.uniform(6.0, 24.0)
        request_s = round(unit_s * shards / fixtures.REQUESTS_PER_VARIANT, 4)
        text = f"shards = {shards}\nflush_interval_s = {fixtures.FLUSH_INTERVAL_S}\n"
        text += "" if workload.is_real else f"synthetic = {{ request_seconds = {request_s} }}\n"
        (folder / "manifest.toml").write_text(workload.manifest + text)
        is_unattended = random_source.random() < 0.5 and not all(FAULT_KINDS[name].needs_user for name in self.kinds)
        damage = not is_unattended and random_source.random() < 0.5 and set(AFTER_RUN) <= set(self.kinds)
        max_faults = random_source.randint(4, 10) if workload.is_real else random_source.randint(15, 60)
        if self.faults is not None:
            max_faults = min(max_faults, self.faults - self.summary.faults.total())
        return TrialPlan(
            faults=max_faults,
            mean_interval_s=5.0 if workload.is_real else 0.8,
            is_unattended=is_unattended,
            overrides=(f"cluster.profile={folder / 'profile.toml'}",),
            request_s=None if workload.is_real else request_s,
            damage_after_run=FAULT_KINDS[random_source.choice(AFTER_RUN)] if damage else None,
            kill_submit=KILLED_COMMAND in self.kinds and random_source.random() < 0.3,
            stall_timeout_s=self.stall_timeout_s * (3 if workload.is_real else 1),
        )

    def _set_up(
        self,
        workload: Workload,
        folder: Path,
        random_source: random.Random,
        cluster: VirtualCluster,
        stack: contextlib.ExitStack,
    ) -> SystemUnderTest:
        """Prepare a trial: its profile, clock and disk."""
        use_clock = not workload.is_real and random_source.random() < 0.5
        clock = fixtures.python_with_clock(folder, _CORE) if use_clock else None
        pythons = {**_pythons(workload), **({"core": clock[0]} if clock else {})}
        variables = {} if workload.is_real else fixtures.synthetic_variables(folder / "journal")
        fixtures.write_profile(folder, pythons, variables)
        use_disk = self._can_mount and "full disk" in self.kinds and random_source.random() < 0.5
        return SystemUnderTest(
            cluster=cluster,
            hpcq=Hpcq(python=_CORE, folder=folder),
            layout=RunLayout(
                name=fixtures.RUN, runs=folder / "runs", checkpoints=folder / "checkpoints", logs=folder / "logs"
            ),
            random=random_source,
            log=partial(self._log.write, trial=folder.name),
            small_disk=stack.enter_context(fixtures.small_disk(folder / "runs")) if use_disk else None,
            clock_offset_file=clock[1] if clock else None,
        )


def _pythons(workload: Workload) -> dict[str, Path]:
    """Return the interpreters that the units of `workload` need."""
    return {"core": _CORE, **({"transformers": environments.interpreter("transformers")} if workload.is_real else {})}
