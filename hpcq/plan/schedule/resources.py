"""Resources of nodes and units as Slurm counts them: GPUs, CPUs, memory."""

from __future__ import annotations

from hpcq.manifest.profiles import Profile
from hpcq.plan.units import Shape

Resources = tuple[float, float, float]
"""GPUs, CPUs and GiB of host memory, all on one node."""


def node_resources(profile: Profile, gpu_class: str) -> Resources:
    """Return the resources of one node of the class. Without Slurm, the CPUs are the number of parallel units."""
    offer = profile.gpu_classes[gpu_class]
    if profile.scheduler == "local":
        return (0, profile.local.parallel_units or 1, 0)
    return (offer.gpus_per_node, offer.cpus_per_node, offer.memory_gib)


def unit_resources(profile: Profile, shape: Shape) -> Resources:
    """Return the resources of a unit on each of its nodes, not more than the node has."""
    if profile.scheduler == "local":
        return (0, 1, 0)
    node = node_resources(profile, shape.gpu_class)
    gets_whole_nodes = shape.gpus_per_node and profile.options_of(shape.gpu_class).gpu_option == "none"
    requested = (
        node[0] if gets_whole_nodes else shape.gpus_per_node,
        unit_cpus(profile, shape),
        unit_memory_gib(profile, shape) or 0.0,
    )
    gpus, cpus, memory_gib = map(min, requested, node)
    return (gpus, cpus, memory_gib)


def unit_nodes(profile: Profile, shape: Shape) -> int:
    """Return the number of nodes of a unit, not more than the class has."""
    return min(shape.nodes, profile.gpu_classes[shape.gpu_class].nodes)


def concurrent_units(profile: Profile, shape: Shape) -> float:
    """Return how many units of that shape run at once on the class. Fractions count: other shapes fill the rest."""
    node, unit = node_resources(profile, shape.gpu_class), unit_resources(profile, shape)
    per_node = min(available / required for available, required in zip(node, unit, strict=True) if required)
    return per_node * profile.gpu_classes[shape.gpu_class].nodes / unit_nodes(profile, shape)


def unit_cpus(profile: Profile, shape: Shape) -> int:
    """Return the CPUs of a unit on each of its nodes: the profile's number, or else its share of the node by GPUs."""
    if profile.scheduler == "local":
        return profile.local.cpus_per_unit
    offer = profile.gpu_classes[shape.gpu_class]
    if offer.cpus_per_unit is not None:
        return offer.cpus_per_unit
    if not offer.gpus_per_node:
        return 1
    return max(1, offer.cpus_per_node * shape.gpus_per_node // offer.gpus_per_node)


def requests_own_memory(profile: Profile, gpu_class: str) -> bool:
    """Whether units of the class can request any host memory: it does not depend on the number of their GPUs."""
    return profile.options_of(gpu_class).memory_option in ("mem", "mem-per-cpu")


def unit_memory_gib(profile: Profile, shape: Shape) -> float | None:
    """Return the host memory to request for a unit on each of its nodes: its share of the node by GPUs, or its need.

    With these shares, memory never blocks a node's free GPUs. None: request nothing, so Slurm's default applies, which
    is unknown here.
    """
    offer, option = profile.gpu_classes[shape.gpu_class], profile.options_of(shape.gpu_class).memory_option
    if option == "none" or (option == "mem-per-gpu" and not shape.gpus_per_node):
        return None
    usual_gib = offer.memory_gib_per_unit or 0.0
    if not usual_gib and offer.gpus_per_node:
        usual_gib = offer.memory_gib * shape.gpus_per_node / offer.gpus_per_node
    return max(usual_gib, shape.host_memory_gib) or None
