"""All checks of `hpcq doctor`, in the order in which one would correct what they find."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hpcq.core.errors import HpcqError, UserInputError
from hpcq.core.paths import cache_folder
from hpcq.core.permissions import check_folders
from hpcq.doctor.cluster import SECTION as SLURM
from hpcq.doctor.cluster import array_findings, class_findings, cluster_findings
from hpcq.doctor.finding import MANIFEST, Finding, Level, checked, fail, ok
from hpcq.doctor.inputs import SECTION as INPUTS
from hpcq.doctor.inputs import input_findings
from hpcq.doctor.machine import ENVIRONMENTS, MACHINE, environment_findings, machine_findings
from hpcq.doctor.storage import SECTION as STORAGE
from hpcq.doctor.storage import folder_findings
from hpcq.launch.array_spec import ArraySpec
from hpcq.launch.build_array_spec import build_array_spec
from hpcq.run.load import LoadedRun
from hpcq.run.submit import plan_run
from hpcq.slurm.client import on_cluster


def diagnose(loaded: LoadedRun | None) -> Iterator[Finding]:
    """Yield the findings about this machine, and about a run if there is one; nothing is submitted or downloaded.

    Args:
        loaded: The run of a manifest.
    """
    yield from checked(MACHINE, machine_findings)
    yield from checked(STORAGE, lambda: folder_findings(cache_folder(), "HPCQ_CACHE"))
    if loaded is None:
        yield from checked(ENVIRONMENTS, lambda: environment_findings((), {}))
        yield from checked(SLURM, lambda: cluster_findings(is_needed=False))
        return
    yield from checked(STORAGE, lambda: _run_folders(loaded))
    names = sorted({unit.environment for unit in loaded.plan.units})
    yield from checked(ENVIRONMENTS, lambda: environment_findings(names, dict(loaded.profile.environments)))
    if loaded.on_slurm:
        with on_cluster(loaded.profile.slurm.cluster):
            yield from _slurm(loaded)
    yield from checked(INPUTS, lambda: input_findings(loaded))
    yield from (fail("plan", one.reason, f"Try this: {one.suggestion}.") for one in loaded.plan.refused)


def problem_finding(error: HpcqError) -> Iterator[Finding]:
    """Yield why a manifest cannot be planned: it is invalid, or what it names cannot be read here."""
    section = MANIFEST if isinstance(error, UserInputError) else INPUTS
    yield from (fail(section, line) for line in str(error).splitlines())


def _run_folders(loaded: LoadedRun) -> Iterator[Finding]:
    layout = loaded.layout
    folders: dict[Path, str] = {}
    for key, folder in (("runs", layout.runs), ("checkpoints", layout.checkpoints), ("logs", layout.logs)):
        folders.setdefault(folder.parent if folder.name == key else folder, f"paths.{key}")
    for folder, key in folders.items():
        yield from folder_findings(folder, key)
    check_folders(layout)
    yield ok(STORAGE, "no other user can replace what the jobs execute.")


def _slurm(loaded: LoadedRun) -> Iterator[Finding]:
    found = list(checked(SLURM, lambda: cluster_findings(is_needed=True)))
    yield from found
    if any(one.level is Level.FAIL for one in found):
        return
    yield from checked(SLURM, lambda: class_findings(loaded.profile))
    yield from checked(SLURM, lambda: array_findings(_arrays(loaded)))


def _arrays(loaded: LoadedRun) -> list[ArraySpec]:
    retries, run = loaded.resolved.manifest.retries, loaded.plan.run
    return [build_array_spec(run, array, loaded.profile, retries) for array in plan_run(loaded).arrays]
