"""Conversion of a planned array to what sbatch gets: partition, memory, CPUs, environment of the profile."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from typing import Any

from hpcq.catalog.plugins import Plugin, lock_folder, pinned_version
from hpcq.catalog.tools import ToolInfo, backends, quantizers
from hpcq.core import environments
from hpcq.core.modulefiles import PREFIX, modules_folder, version_of
from hpcq.core.work_records import EvaluateWork, QuantizeWork
from hpcq.launch.array_spec import ArraySpec, Dependency, Environment, UnitSpec
from hpcq.launch.recovery.retry_policy import RetryPolicy
from hpcq.manifest.profiles import EnvironmentSettings, GpuClass, Profile
from hpcq.manifest.schema import RetriesSection
from hpcq.manifest.slurm_options import SlurmOptions
from hpcq.plan.schedule.resources import unit_cpus
from hpcq.plan.units import PlannedArray, PlannedUnit, Shape

_CACHE_VARIABLES = ("HPCQ_CACHE", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE")


def build_array_spec(
    run: str, array: PlannedArray, profile: Profile, retries: RetriesSection | None = None
) -> ArraySpec:
    """Return what a launcher needs to submit `array`."""
    gpu_class = profile.gpu_classes[array.shape.gpu_class]
    options = profile.options_of(array.shape.gpu_class)
    return ArraySpec(
        name=array.name,
        run=run,
        kind=array.kind,
        units=tuple(UnitSpec(unit_id=unit.id, work=unit.work, planned=_planned(unit)) for unit in array.units),
        environment=_with_caches(build_environment(array.environment, profile), options),
        partition=gpu_class.partition,
        nodes=array.shape.nodes,
        gpus_per_node=array.shape.gpus_per_node,
        gres_type=gpu_class.gres_type,
        features=options.features,
        cpus_per_unit=unit_cpus(profile, array.shape),
        memory_gib=array.memory_gib,
        memory_option=array.memory_option,
        gpu_option=options.gpu_option or "gres",
        time_limit_minutes=array.time_limit_minutes,
        throttle=array.throttle,
        account=options.account,
        qos=options.qos,
        exclude=options.exclude,
        comment=options.comment,
        max_array_size=options.max_array_size,
        extra={**options.extra, "export": options.export} if options.export else options.extra,
        depends_on=array.depends_on,
        dependency=Dependency(array.dependency),
        element=array.element,
        retries=_policy(gpu_class, array.shape, retries or RetriesSection.model_construct()),
        plugins=_plugins(array),
    )


def _plugins(array: PlannedArray) -> tuple[Plugin, ...]:
    """Return the plugins of the array's tools that the lock file of its environment does not list."""
    tools: dict[str, ToolInfo] = {}
    for unit in array.units:
        if isinstance(unit.work, EvaluateWork):
            tools[unit.work.backend] = backends()[unit.work.backend]
        elif isinstance(unit.work, QuantizeWork):
            tools[unit.work.variant.scheme.tool] = quantizers()[unit.work.variant.scheme.tool]
    plugins = dict.fromkeys(info.plugin for info in tools.values() if info.plugin)
    return tuple(one for one in plugins if pinned_version(one.distribution, array.environment) is None)


def _planned(unit: PlannedUnit) -> dict[str, Any]:
    """Return class and estimates at submission, for the calibration of later plans, which may estimate differently."""
    if unit.uncalibrated_seconds is None or not isinstance(unit.work, EvaluateWork):
        return {"gpu_class": unit.shape.gpu_class}
    return {
        "gpu_class": unit.shape.gpu_class,
        "backend": unit.work.backend,
        "uncalibrated_seconds": asdict(unit.uncalibrated_seconds),
    }


def _policy(gpu_class: GpuClass, shape: Shape, retries: RetriesSection) -> RetryPolicy:
    """Return the manifest's policy; exclusions leave as many nodes as a unit needs, or it would never start."""
    return RetryPolicy(
        max_attempts_without_progress=retries.max_attempts_without_progress,
        gpu_hours=retries.gpu_hours,
        max_excluded_nodes=min(retries.max_excluded_nodes, gpu_class.nodes - shape.nodes),
        exclude_hours=retries.exclude_hours,
        max_memory_gib=gpu_class.memory_gib,
    )


def _with_caches(environment: Environment, options: SlurmOptions) -> Environment:
    """Return the environment with the variables that locate the caches, if jobs do not get all of the shell's."""
    if options.export is None:
        return environment
    found = {name: os.environ[name] for name in _CACHE_VARIABLES if name in os.environ}
    return replace(environment, variables=tuple((found | dict(environment.variables)).items()))


def _with_version(module: str) -> str:
    """Return the name of a module; one of hpcq's without a version gets the digest of the locked environment."""
    name = module.removeprefix(PREFIX)
    if name == module or "/" in name or name not in environments.names(lock_folder(name)):
        return module
    return f"{module}/{version_of(environments.folder(name, lock_folder(name)))}"


def build_environment(name: str, profile: Profile) -> Environment:
    """Return the environment from the profile. Its default interpreter is the one in hpcq's own cache."""
    settings = profile.environments.get(name, EnvironmentSettings.model_construct())
    return Environment(
        name=name,
        python=settings.python or str(environments.interpreter(name, lock_folder(name))),
        modules=tuple(map(_with_version, settings.modules)),
        module_path=str(modules_folder()) if any(one.startswith(PREFIX) for one in settings.modules) else "",
        setup=(*profile.slurm.setup, *settings.setup),
        variables=tuple(settings.variables.items()),
    )
