"""Check of the arrays to submit against the limits of their partitions: what would wait forever is a warning."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from hpcq.core.errors import SetupError
from hpcq.manifest.profiles import Profile
from hpcq.plan.units import PlannedArray
from hpcq.slurm.client import on_cluster
from hpcq.slurm.partitions import Partition, partitions


def partition_warnings(profile: Profile, arrays: Iterable[PlannedArray]) -> list[str]:
    """Return a sentence per array and limit that Slurm would accept but never start; none if Slurm does not respond."""
    with contextlib.suppress(SetupError), on_cluster(profile.slurm.cluster):
        return warnings_for(profile, arrays, partitions())
    return []


def warnings_for(profile: Profile, arrays: Iterable[PlannedArray], known: dict[str, Partition]) -> list[str]:
    """Return the warnings, given the cluster's partitions."""
    found: dict[str, None] = {}
    for array in arrays:
        name = profile.gpu_classes[array.shape.gpu_class].partition
        partition = known.get(name) if name else next((one for one in known.values() if one.is_default), None)
        if partition:  # sbatch rejects others
            found |= dict.fromkeys(_exceeded(profile, array, partition))
    return list(found)


def _exceeded(profile: Profile, array: PlannedArray, partition: Partition) -> Iterator[str]:
    key, where = f"gpu_classes.{array.shape.gpu_class}", f"partition '{partition.name}'"
    if partition.max_minutes is not None and array.time_limit_minutes > partition.max_minutes:
        yield (
            f"The time limit of {array.time_limit_minutes} min exceeds the maximum of {where}: set {key}.max_minutes ="
            f" {partition.max_minutes} in the cluster profile."
        )
    if partition.max_nodes is not None and array.shape.nodes > partition.max_nodes:
        yield (
            f"Units of {array.shape.nodes} nodes exceed the maximum of {where}: set {key}.nodes ="
            f" {partition.max_nodes} in the cluster profile."
        )
    if partition.state != "UP":
        yield f"Jobs wait, because {where} is {partition.state}. To use another, set {key}.partition."
    options = profile.options_of(array.shape.gpu_class)
    for kind, value in (("account", options.account), ("qos", options.qos)):
        if value and not partition.admits(kind, value):
            allowed = ", ".join(partition.allowed[kind]) or f"all except {', '.join(partition.denied[kind])}"
            yield (
                f"Partition '{partition.name}' does not allow the {kind} '{value}'; allowed: {allowed}. Correct"
                f" slurm.{kind} or {key}.{kind} in the cluster profile."
            )
