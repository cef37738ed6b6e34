"""Staging of a run: what is missing, and who stages it (this command, a job, or the user with `hpcq stage`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from hpcq.core.completion_marker import read_completion_marker, write_completion_marker
from hpcq.core.environments import CORE_ENVIRONMENT
from hpcq.core.errors import KeyedInputError, ManifestError, SetupError
from hpcq.core.host_memory import GIB
from hpcq.core.paths import COMPLETION_FILE
from hpcq.core.umask import user_umask
from hpcq.core.work_records import EvaluateWork, StageWork, UnitKind
from hpcq.manifest import fidelity_checks
from hpcq.manifest.calibration_checks import staged_text_problems
from hpcq.manifest.context import cache_errors
from hpcq.plan.build_units import stage_work
from hpcq.run.load import LoadedRun, check_examples
from hpcq.run.preflight import check_known_names
from hpcq.stage.inputs import Input, environment_input, hub_inputs, package_inputs, write_refs
from hpcq.stage.progress import ItemKind, StageReporter

_TEXT_CHECKS = {ItemKind.CALIBRATION: staged_text_problems, ItemKind.PANEL: fidelity_checks.check_text}


def run_inputs(loaded: LoadedRun) -> tuple[Input, ...]:
    """Return everything that the run reads and that can be staged; environments first, because staging uses them."""
    return (*_environments(loaded), *package_inputs(loaded.resolved), *hub_inputs(_stage_work(loaded)))


def stage_run(loaded: LoadedRun, reporter: StageReporter) -> tuple[Input, ...]:
    """Stage everything that the run reads, and return it.

    Raises:
        UserInputError: The hub has no such repository, revision or file.
        SetupError: The hub or a package is not available, access is denied, space is missing, or a folder that the
            user has to provide does not exist.
        StorageError: The cache cannot be written.
    """
    check_repositories(loaded)
    if loaded.resolved.absent:
        raise SetupError("\n".join(loaded.resolved.absent))
    inputs = run_inputs(loaded)
    with _cache(loaded):
        _stage(inputs, loaded, reporter)
        write_refs(_stage_work(loaded))
    return inputs


def _stage(inputs: Iterable[Input], loaded: LoadedRun, reporter: StageReporter) -> None:
    """Stage inputs. Wrong keys of the manifest, texts and examples that are too few, are ManifestErrors."""
    context, source = loaded.resolved.context, loaded.resolved.manifest.source
    for each in inputs:
        try:
            each.stage(reporter)
        except KeyedInputError as error:
            # A text of the fidelity panel is prepared like one of a calibration, and its keys have the same names.
            table, _, key = error.key.partition(".")
            path = ("fidelity" if each.item.kind is ItemKind.PANEL else table, *key.split("."))
            raise ManifestError([source.message(path, error.sentence)]) from error
        check = _TEXT_CHECKS.get(each.item.kind)
        if check and (problems := [*check(context)]):
            raise ManifestError([source.message(*problem) for problem in problems])
    check_examples(loaded.resolved)


def check_repositories(loaded: LoadedRun) -> None:
    """Check that every hub repository of the manifest was found and may be read.

    Raises:
        UserInputError: The manifest names something that the hub does not have.
        SetupError: The hub does not respond, or denies access.
    """
    check_known_names(loaded)
    if problems := loaded.resolved.context.pins.problems(in_input=False):
        raise SetupError("\n".join(problems))


def missing_inputs(loaded: LoadedRun) -> tuple[Input, ...]:
    """Return what the run reads from the hub and is not staged. Makes no request."""
    return tuple(each for each in hub_inputs(_stage_work(loaded)) if not each.is_staged())


def prepare_staging(loaded: LoadedRun, reporter: StageReporter) -> None:
    """Stage what is missing and small, or all of it for a local run; leave the rest to the run's stage unit.

    Raises:
        SetupError: Something large is missing, and no class of the profile may stage it.
    """
    work, missing = _stage_work(loaded), missing_inputs(loaded)
    if missing and not _is_left_to_unit(loaded, missing):
        with _cache(loaded):
            _stage(missing, loaded, reporter)
        missing = ()
    if not missing:
        with _cache(loaded):
            write_refs(work)
    for unit_id in _stage_units(loaded):
        folder = loaded.layout.unit_segments(unit_id)
        marker = read_completion_marker(folder)
        if missing:
            (folder / COMPLETION_FILE).unlink(missing_ok=True)  # files that an earlier unit staged were removed
        elif marker is None or marker.address != work.address:
            write_completion_marker(folder, address=work.address, requests=len(hub_inputs(work)), attempt=0)


@contextlib.contextmanager
def _cache(loaded: LoadedRun) -> Iterator[None]:
    """Write to the cache in the block: with the user's umask, and with the key of its folder in errors."""
    with user_umask(), cache_errors(loaded.resolved.manifest):
        yield


def _is_left_to_unit(loaded: LoadedRun, missing: tuple[Input, ...]) -> bool:
    """Return whether a job stages `missing`.

    Raises:
        SetupError: It is too large for this command, and the profile has no class for such a job.
    """
    if not loaded.on_slurm:
        return False
    size_gib, limit_gib = sum(each.missing_bytes() for each in missing) / GIB, loaded.profile.staging.submit_limit_gib
    if size_gib <= limit_gib:
        return False
    if _stage_units(loaded):
        return True
    names = ", ".join(str(each.item) for each in missing)
    raise SetupError(
        f"{names}: not staged ({size_gib:.1f} GiB, more than the {limit_gib:g} GiB of staging.submit_limit_gib that"
        f" `submit` stages): run `hpcq stage {loaded.resolved.manifest.source.path}` on a host with a network, or add"
        " the role 'stage' to a class whose nodes have one."
    )


def _stage_units(loaded: LoadedRun) -> list[str]:
    return [unit.id for unit in loaded.plan.units if unit.kind is UnitKind.STAGE]


def _stage_work(loaded: LoadedRun) -> StageWork:
    evaluations = (unit.work for unit in loaded.plan.units if isinstance(unit.work, EvaluateWork))
    return stage_work(loaded.resolved, next((work.tasks for work in evaluations), ()))


def _environments(loaded: LoadedRun) -> list[Input]:
    """Return the environments of the plan, except this one and those whose interpreter is in the profile."""
    in_profile = {name for name, settings in loaded.profile.environments.items() if settings.python}
    names = {unit.environment for unit in loaded.plan.units} - in_profile - {CORE_ENVIRONMENT}
    return [environment_input(name) for name in sorted(names)]
