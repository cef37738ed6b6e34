"""Preflight checks of a submission: refused variants, missing models and environments, Slurm. Writes nothing."""

from __future__ import annotations

import logging
import os

from hpcq.catalog.plugins import lock_folder
from hpcq.catalog.tools import backends
from hpcq.core import environments
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.work_records import EvaluateWork
from hpcq.data import MODULES
from hpcq.launch.visible_gpus import VisibleGpus, installed_gpus, visible_gpus
from hpcq.manifest.profiles import Profile
from hpcq.plan.units import PlannedUnit
from hpcq.run.load import LoadedRun
from hpcq.slurm.client import check_cluster, on_cluster

_LOG = logging.getLogger(__name__)

DEFAULT_ENVIRONMENTS = ("core", "transformers")
"""Environments that `make environments` creates."""


def check_submittable(loaded: LoadedRun) -> None:
    """Check, before anything is written, that every unit of the plan can run here once its input is staged.

    Raises:
        UserInputError: A unit cannot run.
        SetupError: A model, an environment or Slurm is missing.
    """
    # Benchmarks that cannot run are skipped (plan and report list them); variants that cannot run are errors.
    has_runnable_task = any(isinstance(unit.work, EvaluateWork) and unit.work.tasks for unit in loaded.plan.units)
    refused = [
        f"{refusal.reason} Try this: {refusal.suggestion}."
        for refusal in loaded.plan.refused
        if refusal.variant is not None or not has_runnable_task
    ]
    problems = [_layout_problem(unit, on_slurm=loaded.on_slurm) for unit in loaded.plan.units]
    if not loaded.on_slurm:
        problems.append(_visible_gpu_problem(loaded, visible_gpus(os.environ, gpu_count(loaded.profile))))
    refused += dict.fromkeys(filter(None, problems))
    if refused:
        raise UserInputError("\n".join(refused))
    check_known_names(loaded)
    missing = [*loaded.resolved.missing, *loaded.resolved.context.pins.problems(in_input=False)]
    for name in sorted({unit.environment for unit in loaded.plan.units}):
        settings = loaded.profile.environments.get(name)
        locks = lock_folder(name)
        if not (settings and settings.python) and not environments.exists(name, locks):
            command = f"python3 -m hpcq.core.environments {name}" + (f" --locks {locks}" if locks != MODULES else "")
            command = "make environments" if name in DEFAULT_ENVIRONMENTS else command
            missing.append(f"The environment '{name}' does not exist: run `{command}`.")
    if loaded.on_slurm and not missing:
        with on_cluster(loaded.profile.slurm.cluster):
            check_cluster()
    if missing:
        raise SetupError("\n".join(missing))


def check_known_names(loaded: LoadedRun) -> None:
    """Check that the hub has every repository and revision of the manifest, as far as it or its cache has answered.

    Raises:
        UserInputError: It has answered that one does not exist.
    """
    if unknown := loaded.resolved.context.pins.problems(in_input=True):
        raise UserInputError("\n".join(unknown))


def gpu_count(profile: Profile) -> int:
    """Return the number of GPUs per node of the class with most."""
    return max((gpu_class.gpus_per_node for gpu_class in profile.gpu_classes.values()), default=0)


def _visible_gpu_problem(loaded: LoadedRun, visible: VisibleGpus) -> str | None:
    """Return why a unit of a local run cannot get its GPUs; None if all can. Log a warning if some are not visible."""
    if loaded.is_synthetic or not any(unit.shape.gpus for unit in loaded.plan.units):
        return None
    if problem := absent_gpu_problem(loaded.profile, visible, installed_gpus()):
        return problem
    found, total = len(visible.names), gpu_count(loaded.profile)
    if found == total:
        return None
    cause = f"{visible.variable} = {os.environ[visible.variable]!r} makes {found} of {total} GPUs visible"
    largest = max(loaded.plan.units, key=lambda unit: unit.shape.gpus_per_node)
    needed = largest.shape.gpus_per_node
    if needed > found:
        return (
            f"profile '{loaded.profile.name}': {cause}, but {largest.id} needs {needed}. Make more of them visible, or"
            f" set gpus_per_node of class '{largest.shape.gpu_class}' to the number of visible GPUs."
        )
    _LOG.warning("profile '%s': %s. The run uses only these.", loaded.profile.name, cause)
    return None


def absent_gpu_problem(profile: Profile, visible: VisibleGpus, installed: int | None) -> str | None:
    """Return which GPUs this machine does not have, of those that a local run would use; None if it has all.

    Args:
        profile: The profile.
        visible: GPUs of the run.
        installed: Number of GPUs of this machine; None: not known.
    """
    absent = visible.absent(installed)
    if not absent:
        return None
    value = os.environ.get(visible.variable)
    if value is None:
        return (
            f"profile '{profile.name}': gpus_per_node is {gpu_count(profile)}, but this machine has {installed} GPUs:"
            f" set gpus_per_node = {installed}."
        )
    return (
        f"profile '{profile.name}': {visible.variable} = {value!r} selects GPU {', '.join(absent)}, but the {installed}"
        " GPUs of this machine are numbered from 0: correct the variable, or unset it."
    )


def _layout_problem(unit: PlannedUnit, *, on_slurm: bool) -> str | None:
    """Return why a backend cannot run the unit with its planned shape; None if it can."""
    work, shape = unit.work, unit.shape
    if not isinstance(work, EvaluateWork) or not backends()[work.backend].has_engine_options:
        return None
    if shape.nodes > 1 and not on_slurm:
        return (
            f"{work.variant.id}: needs {shape.nodes} nodes of class '{shape.gpu_class}', but a profile with scheduler ="
            " 'local' has only this machine. Try a profile with scheduler = 'slurm', or a scheme with fewer bits."
        )
    engine = dict(work.engine_options)
    requested = int(engine.get("tensor_parallel_size", 1)) * int(engine.get("pipeline_parallel_size", 1))
    if shape.gpus and requested > shape.gpus:
        return (
            f"{work.variant.id}: evaluate.engine sets tensor and pipeline parallel sizes for {requested} GPUs, but"
            f" the plan assigns {shape.gpus} GPUs of class '{shape.gpu_class}'. Remove these sizes."
        )
    return None
