"""Where a unit runs: the GPU class that offers the role and takes the fewest GPUs, in the order of the profile.

Tensor parallel inside a node, pipeline parallel across nodes (vLLM alone does that); accelerate spreads layers over one
node.
"""

from __future__ import annotations

from hpcq.catalog.gpus import find_gpu
from hpcq.catalog.models import ModelShape
from hpcq.manifest.profiles import GpuClass, Profile
from hpcq.plan.memory import GIB, WEIGHTS_SHARE
from hpcq.plan.units import Shape
from hpcq.units import Kind


class CannotPlace(Exception):
    """No class of the profile can hold the unit; the message has the numbers, `cure` the nearest thing that can."""

    def __init__(self, reason: str, cure: str) -> None:
        super().__init__(reason)
        self.cure = cure


def place(
    kind: Kind, profile: Profile, *, weight_bytes: int | None, model: ModelShape | None, across_nodes: bool
) -> Shape:
    """The smallest shape that holds `weight_bytes` (None: unknown, so one GPU).

    Raises:
        CannotPlace: nothing in the profile has the role, or the memory.
    """
    offered = [(name, offer) for name, offer in profile.gpu_classes.items() if kind.value in offer.roles]
    if not offered:
        raise CannotPlace(
            f"no GPU class of profile '{profile.name}' has the role '{kind.value}'",
            f"add '{kind.value}' to the roles of a class",
        )
    shapes = [
        shape
        for name, offer in offered
        if (shape := _smallest(name, offer, weight_bytes, model, across_nodes=across_nodes))
    ]
    if shapes:
        return min(shapes, key=lambda shape: shape.gpus)
    needed = (weight_bytes or 0) / GIB / WEIGHTS_SHARE
    largest = max(offered, key=lambda item: _usable_gib(item[1], across_nodes=across_nodes))
    raise CannotPlace(
        f"needs about {needed:.0f} GiB of GPU memory; the largest offer is {largest[0]} with "
        f"{_usable_gib(largest[1], across_nodes=across_nodes):.0f} GiB",
        "try a scheme with fewer bits, or a class with more nodes",
    )


def _usable_gib(offer: GpuClass, *, across_nodes: bool) -> float:
    gpu = find_gpu(offer.gpu) if offer.gpu else None
    per_node = offer.gpus_per_node * (gpu.memory_gib if gpu else 0.0)
    return per_node * (offer.nodes if across_nodes else 1)


def _smallest(
    name: str, offer: GpuClass, weight_bytes: int | None, model: ModelShape | None, *, across_nodes: bool
) -> Shape | None:
    if offer.gpus_per_node == 0:
        return Shape(gpu_class=name)
    gpu = find_gpu(offer.gpu) if offer.gpu else None
    if weight_bytes is None or gpu is None:
        return Shape(gpu_class=name, gpus_per_node=1)
    needed_gpus = weight_bytes / (gpu.memory_gib * WEIGHTS_SHARE * GIB)
    for gpus in range(1, offer.gpus_per_node + 1):
        if gpus >= needed_gpus and _divides(gpus, model, across_nodes=across_nodes):
            return Shape(gpu_class=name, gpus_per_node=gpus, tensor_parallel=gpus if across_nodes else 1)
    if not across_nodes or not _divides(offer.gpus_per_node, model, across_nodes=True):
        return None
    for nodes in range(2, offer.nodes + 1):
        if nodes * offer.gpus_per_node >= needed_gpus:
            return Shape(
                gpu_class=name,
                nodes=nodes,
                gpus_per_node=offer.gpus_per_node,
                tensor_parallel=offer.gpus_per_node,
                pipeline_parallel=nodes,
            )
    return None


def _divides(gpus: int, model: ModelShape | None, *, across_nodes: bool) -> bool:
    """Tensor parallel needs the attention heads to divide (vLLM 0.32); layers spread over a node need nothing."""
    return not across_nodes or model is None or model.heads % gpus == 0
