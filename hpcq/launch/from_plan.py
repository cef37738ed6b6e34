"""A planned array becomes an order to a launcher: the profile adds partition, host memory, cores, environment.

Reads the plan and the profile; submits nothing.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hpcq.core import environments
from hpcq.core.work import EvaluateWork
from hpcq.launch.array_spec import ArrayOrder, Dependency, Environment, UnitOrder
from hpcq.launch.recovery.retry_policy import Policy
from hpcq.manifest.profiles import EnvironmentSettings, GpuClass, Profile
from hpcq.manifest.schema import RetriesSection
from hpcq.plan.schedule.resources import cores_of, memory_gib_of
from hpcq.plan.units import PlannedArray, PlannedUnit, Shape


def order_of(run: str, array: PlannedArray, profile: Profile, retries: RetriesSection | None = None) -> ArrayOrder:
    """What a launcher needs to submit `array`."""
    offer = profile.gpu_classes[array.shape.gpu_class]
    slurm = profile.slurm
    return ArrayOrder(
        name=array.name,
        run=run,
        kind=array.kind,
        units=tuple(UnitOrder(unit_id=unit.id, work=unit.work, planned=_planned(unit)) for unit in array.units),
        environment=environment_of(array.environment, profile),
        partition=offer.partition,
        nodes=array.shape.nodes,
        gpus_per_node=array.shape.gpus_per_node,
        gres_type=offer.gres_type,
        features=offer.features,
        cpus_per_unit=cores_of(profile, array.shape),
        memory_gib=memory_gib_of(profile, array.shape),
        time_limit_minutes=array.time_limit_minutes,
        throttle=array.throttle,
        account=slurm.account,
        qos=slurm.qos,
        exclude=slurm.exclude,
        extra=slurm.extra,
        depends_on=array.depends_on,
        dependency=Dependency(array.dependency),
        element=array.element,
        retries=_policy(offer, array.shape, retries or RetriesSection()),
    )


def _planned(unit: PlannedUnit) -> dict[str, Any]:
    """What later plans measure an attempt against, whatever they would plan by then."""
    if unit.reckoned is None or not isinstance(unit.work, EvaluateWork):
        return {}
    return {"gpu_class": unit.shape.gpu_class, "backend": unit.work.backend, "reckoned_seconds": asdict(unit.reckoned)}


def _policy(offer: GpuClass, shape: Shape, retries: RetriesSection) -> Policy:
    """The manifest's budget; of a class's nodes as many are left as a unit needs, or it would wait for ever."""
    return Policy(
        attempts_without_progress=retries.attempts_without_progress,
        gpu_hours=retries.gpu_hours,
        excluded_nodes_at_most=min(retries.excluded_nodes_at_most, offer.nodes - shape.nodes),
        exclude_hours=retries.exclude_hours,
        memory_gib_at_most=offer.memory_gib,
    )


def environment_of(name: str, profile: Profile) -> Environment:
    """The environment as the profile says, else the cache's own interpreter."""
    settings = profile.environments.get(name, EnvironmentSettings())
    return Environment(
        name=name,
        python=settings.python or str(environments.interpreter(name)),
        modules=settings.modules,
        setup=(*profile.slurm.setup, *settings.setup),
        variables=tuple(settings.variables.items()),
    )
