"""What a node has and what a unit takes of it, as Slurm counts: GPUs, cores, GiB of memory.

Knows the profile and shapes; must not know time, order or Slurm's commands.
"""

from __future__ import annotations

from hpcq.manifest.profiles import GpuClass, Profile
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
    offer = profile.gpu_classes[shape.gpu_class]
    wanted = (shape.gpus_per_node, _cores(offer, shape), _memory_gib(offer, shape))
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


def _cores(offer: GpuClass, shape: Shape) -> int:
    if offer.cpus_per_unit is not None:
        return offer.cpus_per_unit
    if not offer.gpus_per_node:
        return 1
    return max(1, offer.cpus_per_node * shape.gpus_per_node // offer.gpus_per_node)


def _memory_gib(offer: GpuClass, shape: Shape) -> float:
    if offer.memory_gib_per_unit is not None:
        return offer.memory_gib_per_unit
    # By GPUs, so that memory never runs out before them; without GPUs Slurm's own default, which nobody knows here.
    share = offer.memory_gib * shape.gpus_per_node / offer.gpus_per_node if offer.gpus_per_node else 0.0
    return max(share, shape.host_gib)
