"""What a node has and what a unit takes of it, as Slurm counts: GPUs, cores, GiB of memory.

Knows the profile and shapes; must not know time, order or Slurm's commands.
"""

from __future__ import annotations

from hpcq.manifest.profiles import Profile
from hpcq.plan.units import Shape

Amounts = tuple[float, float, float]
"""GPUs, cores, GiB of host memory of one node."""


def node_of(profile: Profile, gpu_class: str) -> Amounts:
    """What one node of the class has. This machine's cores are counted in units that run at once."""
    offer = profile.gpu_classes[gpu_class]
    if profile.scheduler == "local":
        return (0, profile.local.parallel_units or 1, 0)
    return (offer.gpus_per_node, offer.cpus_per_node, offer.memory_gib)


def taken_of(profile: Profile, shape: Shape) -> Amounts:
    """What a unit of that shape takes of each of its nodes, never more than the node has."""
    if profile.scheduler == "local":
        return (0, 1, 0)
    wanted = (shape.gpus_per_node, cores_of(profile, shape), memory_gib_of(profile, shape) or 0.0)
    gpus, cores, memory = map(min, wanted, node_of(profile, shape.gpu_class))
    return (gpus, cores, memory)


def nodes_of(profile: Profile, shape: Shape) -> int:
    """How many nodes a unit of that shape takes, never more than there are."""
    return min(shape.nodes, profile.gpu_classes[shape.gpu_class].nodes)


def at_once(profile: Profile, shape: Shape) -> float:
    """How many units of that shape a class has room for; a fraction counts, for units of other shapes fill the rest."""
    node, taken = node_of(profile, shape.gpu_class), taken_of(profile, shape)
    on_a_node = min(has / takes for has, takes in zip(node, taken, strict=True) if takes)
    return on_a_node * profile.gpu_classes[shape.gpu_class].nodes / nodes_of(profile, shape)


def cores_of(profile: Profile, shape: Shape) -> int:
    """Cores of a unit on each of its nodes: the profile's number, else its share of the node by GPUs."""
    if profile.scheduler == "local":
        return profile.local.cpus_per_unit
    offer = profile.gpu_classes[shape.gpu_class]
    if offer.cpus_per_unit is not None:
        return offer.cpus_per_unit
    if not offer.gpus_per_node:
        return 1
    return max(1, offer.cpus_per_node * shape.gpus_per_node // offer.gpus_per_node)


def memory_gib_of(profile: Profile, shape: Shape) -> float | None:
    """Host memory of a unit on each of its nodes, by GPUs, so that it does not run out before them.

    None: what Slurm gives where nothing is asked for, which nobody knows here.
    """
    offer = profile.gpu_classes[shape.gpu_class]
    if offer.memory_gib_per_unit is not None:
        return offer.memory_gib_per_unit
    if not offer.gpus_per_node or not shape.gpus_per_node:
        return shape.host_gib or None
    return max(offer.memory_gib * shape.gpus_per_node / offer.gpus_per_node, shape.host_gib)
