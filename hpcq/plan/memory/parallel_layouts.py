"""The shapes that a class of nodes offers an evaluation: nodes, GPUs of each, and how a model is split over them.

Knows a class and how back ends split; must not know models, nor what fits.
"""

from __future__ import annotations

from collections.abc import Iterator

from hpcq.manifest.profiles import GpuClass
from hpcq.plan.memory.gpu_memory import Split
from hpcq.plan.units import Shape


def shapes(
    name: str, offer: GpuClass, backend: str, wanted_tensor: int | None = None, wanted_stages: int | None = None
) -> Iterator[tuple[Shape, Split]]:
    """Every shape that a class offers, from the smallest. Where matrices are not cut, layers are dealt to the GPUs."""
    cuts = backend == "vllm"
    if cuts and (wanted_stages or (wanted_tensor or 1) > offer.gpus_per_node):
        for tensor in [wanted_tensor] if wanted_tensor else range(1, offer.gpus_per_node + 1):
            yield from shapes_as_told(name, offer, tensor, wanted_stages or 1)
        return
    for gpus in range(1, offer.gpus_per_node + 1):
        split = Split(tensor=gpus) if cuts else Split(stages=gpus)
        yield Shape(gpu_class=name, gpus_per_node=gpus, tensor_parallel=split.tensor), split
    if not cuts:
        return
    for nodes in range(2, offer.nodes + 1):
        # Whole nodes first; fewer GPUs of each only help where all of them do not divide the model.
        for gpus in range(offer.gpus_per_node, 0, -1):
            split = Split(tensor=gpus, stages=nodes)
            yield (
                Shape(gpu_class=name, nodes=nodes, gpus_per_node=gpus, tensor_parallel=gpus, pipeline_parallel=nodes),
                split,
            )


def shapes_as_told(name: str, offer: GpuClass, tensor: int, stages: int) -> Iterator[tuple[Shape, Split]]:
    """The smallest number of nodes that holds a split which was asked for: stages in a node, or matrices across nodes.

    A group that shares matrices fills whole nodes, or shares a node with whole groups.
    """
    for nodes in range(1, offer.nodes + 1):
        gpus, rest = divmod(tensor * stages, nodes)
        if not rest and gpus <= offer.gpus_per_node and 0 in (gpus % tensor, tensor % gpus):
            split = Split(tensor=tensor, stages=stages)
            shape = Shape(
                gpu_class=name, nodes=nodes, gpus_per_node=gpus, tensor_parallel=tensor, pipeline_parallel=stages
            )
            yield shape, split
            return
