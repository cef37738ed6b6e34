"""The verbs as functions, for notebooks and scripts: what the command line prints, these return."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.files import make_folder, write_text
from hpcq.core.paths import RunLayout
from hpcq.core.permissions import private
from hpcq.core.run_lock import hold
from hpcq.core.work import Kind, State, slug
from hpcq.launch.array_spec import Submission
from hpcq.launch.from_plan import order_of
from hpcq.launch.job_status import UnitJobView, live_arrays, unit_jobs_if_any, wait_until_ended
from hpcq.launch.local_control import interrupt_holder, interrupt_units, stop_orphans
from hpcq.launch.local_launcher import LocalLauncher, Machine
from hpcq.launch.recovery.close_attempts import EndedJob, cancelled
from hpcq.launch.submissions import read_submissions
from hpcq.manifest.profiles import Profile
from hpcq.monitor.snapshot import LIVE, JobView, RunStatus, take_picture
from hpcq.plan.arrays import make_arrays
from hpcq.plan.plan_json import gpu_hours, plan_document
from hpcq.plan.schedule.simulator import expected
from hpcq.plan.units import PlannedArray, PlannedUnit
from hpcq.run.preflight import check_runnable
from hpcq.run.run import Opened, RunRecord, begin, open_manifest, open_run, read_run, refuse_another

__all__ = [
    "Handed",
    "Opened",
    "Planned",
    "cancel",
    "dry_run",
    "gpu_hours_to_hand_over",
    "hand_over",
    "init_manifest",
    "init_profile",
    "logs",
    "merge",
    "open_manifest",
    "open_run",
    "plan",
    "report",
    "stage",
    "status",
]

LOOK_INTERVAL_S = 1.0
SHOWN_JOBS = 3
CANCEL_TIMEOUT_S = 120.0

Watch = Callable[[RunStatus], None]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan with its units' states, the arrays that a submission would make now, and the JSON document of both."""

    opened: Opened
    status: RunStatus
    arrays: tuple[PlannedArray, ...]
    document: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Handed:
    """What a submission did: arrays that Slurm took (none on this machine), and the run's state afterwards."""

    submissions: tuple[Submission, ...]
    status: RunStatus


def plan(manifest: Path, overrides: Sequence[str] = ()) -> Planned:
    """Plan `manifest`; nothing is written or submitted. Units that exist already are done.

    Raises:
        ManifestError: everything that is wrong with the manifest, at once.
    """
    opened = open_manifest(manifest, overrides)
    seen = take_picture(opened.layout, plan_document(opened.plan, (), {})["units"], {})
    arrays = make_arrays(_missing(opened, seen, retry_failed=True), opened.profile)
    states = {unit.id: unit.state for unit in seen.units}
    document = plan_document(opened.plan, arrays, states, expected(arrays, opened.profile))
    return Planned(opened=opened, status=seen, arrays=arrays, document=document)


def gpu_hours_to_hand_over(opened: Opened, *, retry_failed: bool = False) -> dict[str, float]:
    """By class, what a submission would hand over now, estimated. Jobs that wait or run already do not count.

    Raises:
        SetupError: Slurm is asked, and does not answer.
    """
    jobs = unit_jobs_if_any(opened.layout)
    seen = take_picture(opened.layout, plan_document(opened.plan, (), {})["units"], _views(jobs))
    return gpu_hours(make_arrays(_missing(opened, seen, retry_failed=retry_failed), opened.profile))


def dry_run(manifest: Path, overrides: Sequence[str] = ()) -> Planned:
    """Plan, and check everything that a submission checks.

    Raises:
        UserInputError, SetupError: what a submission would refuse.
    """
    planned = plan(manifest, overrides)
    check_runnable(planned.opened)
    refuse_another(planned.opened)
    return planned


def hand_over(
    opened: Opened, *, retry_failed: bool = False, unattended: bool = False, watch: Watch | None = None
) -> Handed:
    """Submit what is missing. On this machine: run it to the end, showing `watch` the state now and then.

    unattended: nobody has asked, so what waits for a cure is left alone.

    Raises:
        UserInputError: something in the plan cannot run, the run's folder belongs to another manifest, units of an
            earlier plan still wait or run, or another user can write the run's folders.
        SetupError: a model, an environment or Slurm is missing.
    """
    check_runnable(opened)
    refuse_another(opened)
    with private(opened.layout), hold(opened.layout):
        jobs = unit_jobs_if_any(opened.layout)
        _refuse_strays(opened, jobs)
        stop_orphans(opened.layout)
        begin(opened)
        units = plan_document(opened.plan, (), {})["units"]
        seen = take_picture(opened.layout, units, _views(jobs))
        missing = _missing(opened, seen, retry_failed=retry_failed, unattended=unattended)
        # A job whose result is on disk is waited for by nobody: Slurm may have queued it again, and even hold it.
        done = {unit.id for unit in seen.units if unit.state is State.DONE}
        under_way = {unit_id: job.array for unit_id, job in jobs.items() if job.is_live and unit_id not in done}
        arrays = make_arrays(missing, opened.profile, under_way=under_way)
        orders = [
            order_of(opened.plan.run, array, opened.profile, opened.resolved.manifest.retries) for array in arrays
        ]
        submissions: tuple[Submission, ...] = ()
        if opened.on_slurm:
            from hpcq.launch.slurm_launcher import SlurmLauncher
            from hpcq.slurm.squeue import release

            release(job.element for job in jobs.values() if job.is_held)
            submissions = tuple(SlurmLauncher(opened.layout).submit(orders, live_arrays(jobs)))
        elif orders:
            look = _looking(opened.layout, units, watch) if watch else _do_nothing
            LocalLauncher(opened.layout, _machine(opened.profile), on_poll=look).run(orders)
    jobs = unit_jobs_if_any(opened.layout)
    return Handed(submissions=submissions, status=take_picture(opened.layout, units, _views(jobs)))


def _do_nothing() -> None:
    pass


def _looking(layout: RunLayout, units: Sequence[Mapping[str, Any]], watch: Watch) -> Callable[[], None]:
    """What shows `watch` the state, once a second at most."""
    shown_s = -LOOK_INTERVAL_S

    def look() -> None:
        nonlocal shown_s
        if time.monotonic() - shown_s >= LOOK_INTERVAL_S:
            shown_s = time.monotonic()
            watch(take_picture(layout, units, {}))

    return look


def _refuse_strays(opened: Opened, jobs: Mapping[str, UnitJobView]) -> None:
    """Jobs of another plan of this run, or of Slurm where this machine is to work, would do the work twice."""
    planned = {unit.id for unit in opened.plan.units} if opened.on_slurm else set()
    strays = sorted(job.job_id for unit_id, job in jobs.items() if job.is_live and unit_id not in planned)
    if strays:
        raise UserInputError(
            f"{opened.layout.folder}: jobs of an earlier submission still wait or run ({', '.join(strays[:SHOWN_JOBS])}"
            f"{', …' if len(strays) > SHOWN_JOBS else ''}): wait for them, or type `hpcq cancel {opened.layout.name}`."
        )


def status(run: str) -> RunStatus:
    """Where the run stands: one call to Slurm, whatever its size.

    Raises:
        UserInputError: there is no such run.
    """
    return _status_of(read_run(run))


def logs(run: str, unit: str | None = None) -> list[Path]:
    """The files that the run's units printed to, oldest first; of a unit that never began, its job's.

    Raises:
        UserInputError: no such run, or no unit of it has `unit` in its id.
    """
    record = read_run(run)
    wanted = _named_units(record, [unit] if unit else [])
    found = {path: path.name.rsplit(".", 2)[0] for path in record.layout.job_logs.glob("*.log")}
    found = {path: name for path, name in found.items() if name in wanted}
    begun = set(found.values())
    for submission in read_submissions(record.layout):
        for index, name in enumerate(submission.units):
            path = submission.launcher_log(index)
            if name in wanted - begun and path.is_file():
                found[path] = name
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def cancel(run: str, units: Sequence[str] = ()) -> list[str]:
    """Cancel the jobs of the run's units (all, or those named) that wait or run; ids of the units cancelled.

    Returns when the jobs have ended, so that a `resume` typed next finds none of them under way.

    Raises:
        UserInputError: no such run or unit.
        SetupError: the run is worked on from another host, or Slurm is still ending the jobs after two minutes.
    """
    record = read_run(run)
    named = _named_units(record, units)
    jobs = {unit_id: job for unit_id, job in unit_jobs_if_any(record.layout).items() if job.is_live}
    wanted = {unit_id for unit_id in jobs if unit_id in named or not units}
    if wanted:
        from hpcq.slurm.squeue import cancel as cancel_jobs

        cancel_jobs(jobs[unit_id].element for unit_id in wanted)
        for unit_id in wanted:
            job = jobs[unit_id]
            if job.state is State.PENDING:  # one that runs notes it itself
                ended = EndedJob(job_id=job.job_id, launcher="slurm", node="", log=job.log)
                cancelled(record.layout, unit_id, ended)
        ending = wait_until_ended(record.layout, (jobs[unit_id] for unit_id in wanted), CANCEL_TIMEOUT_S)
        if ending:
            raise SetupError(
                f"Cancelled {len(wanted)} units, and Slurm is still ending {len(ending)} of them"
                f" ({', '.join(job.job_id for job in ending[:SHOWN_JOBS])}): `hpcq resume` before they have ended would"
                " leave them out. See `hpcq status`."
            )
        return sorted(wanted)
    seen = take_picture(record.layout, record.document["units"], {})
    if not units and interrupt_holder(record.layout):
        return [unit.id for unit in seen.units if unit.state is not State.DONE]
    return interrupt_units(record.layout, named)


def merge(run: str) -> dict[str, Any]:
    """Merge what is committed, here and now, and return what was found (the document of `merge --json`).

    Raises:
        UserInputError: there is no such run, or another user can write its folders.
        SetupError: the merge could not be done.
    """
    from hpcq.store import read_results

    opened = open_run(run)
    if not opened.plan.units:
        raise UserInputError(f"{run}: nothing of this run can be evaluated, so nothing can be merged; see `hpcq plan`.")
    unit = opened.plan.units[-1]
    array = make_arrays([unit], opened.profile)[0]
    order = order_of(opened.plan.run, array, opened.profile, opened.resolved.manifest.retries)
    with private(opened.layout):
        outcomes = LocalLauncher(opened.layout, _machine(opened.profile)).run([order])
    for outcome in outcomes.values():
        if outcome.state is not State.DONE:
            raise SetupError(f"The merge failed: {outcome.reason}. See `hpcq logs {run} merge`.")
    return {"run": opened.plan.run, **read_results(opened.layout.results).merge}


def report(runs: Sequence[str], *, output_format: str = "text", compare: str | None = None) -> str:
    """The scores of `runs` in one of the formats of `hpcq.report.formats.WRITERS`.

    Raises:
        UserInputError: no such run, or no such study.
        RunIncomplete: a run has no merged results yet.
    """
    from hpcq.report.report import MergedRun, make_report

    merged = [
        MergedRun(name=record.layout.name, results=record.layout.results, document=record.document)
        for record in map(read_run, runs)
    ]
    return make_report(merged, output_format=output_format, compare=compare)


def stage(
    manifest: Path, overrides: Sequence[str] = (), *, progress: Callable[[str], None] = lambda _line: None
) -> list[Path]:
    """Bring what `manifest` names and a package ships to the cache; where it lies.

    Raises:
        SetupError: a package cannot be had.
    """
    from hpcq.stage.manifest import stage_manifest

    return stage_manifest(open_manifest(manifest, overrides).resolved, progress=progress)


def init_manifest(path: Path | None = None, *, overwrite: bool = False) -> Path:
    """Write a first manifest, to `manifest.toml` unless told otherwise; where it is.

    Raises:
        UserInputError: the file exists.
    """
    from hpcq.manifest.first_manifest import FIRST_MANIFEST

    return _write_new(path or Path("manifest.toml"), FIRST_MANIFEST, overwrite=overwrite)


def init_profile(path: Path | None = None, *, overwrite: bool = False) -> Path:
    """Write a profile of the cluster that Slurm here belongs to, to `clusters/NAME.toml` unless told otherwise.

    Raises:
        UserInputError: the file exists.
        SetupError: there is no Slurm, it does not answer, or it has no nodes that hpcq can use.
    """
    from hpcq.manifest.first_profile import profile_text
    from hpcq.slurm.sinfo import cluster_name, node_kinds

    name = cluster_name()
    target = path or Path("clusters") / f"{slug(name)}.toml"
    return _write_new(target, profile_text(name, node_kinds()), overwrite=overwrite)


def _write_new(path: Path, text: str, *, overwrite: bool) -> Path:
    if path.exists() and not overwrite:
        raise UserInputError(f"{path} exists: name another file, or add --overwrite.")
    make_folder(path.parent)
    write_text(path, text)
    return path


def _machine(profile: Profile) -> Machine:
    """What of this machine a run may use."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        memory_gib=memory_bytes / 2**30,
        gpus=max((offer.gpus_per_node for offer in profile.gpu_classes.values()), default=0),
        parallel_units=profile.local.parallel_units,
    )


def _status_of(record: RunRecord) -> RunStatus:
    """Slurm is asked only where the disk does not say that all is done."""
    seen = take_picture(record.layout, record.document["units"], {})
    if seen.state is State.DONE:
        return seen
    return take_picture(record.layout, record.document["units"], _views(unit_jobs_if_any(record.layout)))


def _views(jobs: Mapping[str, UnitJobView]) -> dict[str, JobView]:
    return {
        unit_id: JobView(job_id=job.job_id, state=job.state, reason=job.reason, log=job.log)
        for unit_id, job in jobs.items()
    }


def _missing(opened: Opened, seen: RunStatus, *, retry_failed: bool, unattended: bool = False) -> list[PlannedUnit]:
    """The units to hand over: not done, not under way, not given up, and with nothing that they need given up.

    The merge goes along whenever an evaluation does.
    """
    states = {unit.id: unit.state for unit in seen.units}
    left = {
        unit.id for unit in seen.units if (unit.is_given_up and not retry_failed) or (unit.is_stopped and unattended)
    }
    chosen: list[PlannedUnit] = []
    evaluations = False
    for unit in opened.plan.units:
        state = states[unit.id]
        if unit.kind is Kind.MERGE:
            wanted = evaluations or state not in (State.DONE, *LIVE)
        else:
            wanted = state is not State.DONE and state not in LIVE and left.isdisjoint((unit.id, *unit.depends_on))
            evaluations |= wanted and unit.kind is Kind.EVALUATE
        if wanted:
            chosen.append(unit)
    return chosen


def _named_units(record: RunRecord, parts: Sequence[str]) -> set[str]:
    known = [unit["id"] for unit in record.document["units"]]
    if not parts:
        return set(known)
    named: set[str] = set()
    for part in parts:
        found = {unit_id for unit_id in known if part in unit_id}
        if not found:
            raise UserInputError(
                f"{part}: no unit of run '{record.layout.name}' has this in its id; see `hpcq status`."
            )
        named |= found
    return named
