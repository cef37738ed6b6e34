"""Parallel layouts on a node class: nodes, GPUs per node, and the model's share on each GPU."""

from __future__ import annotations

from collections.abc import Iterator

from hpcq.catalog.tools import Splitting
from hpcq.manifest.profiles import GpuClass
from hpcq.plan.memory.gpu_memory import Parallelism
from hpcq.plan.units import Shape


def parallel_layouts(
    name: str,
    gpu_class: GpuClass,
    splitting: Splitting,
    tensor_parallel: int | None = None,
    pipeline_parallel: int | None = None,
) -> Iterator[tuple[Shape, Parallelism]]:
    """Yield every layout on a class, from the smallest.

    Args:
        name: Name of the class.
        gpu_class: The class. A backend that does not span nodes gets one with one node.
        splitting: How the backend distributes a model. TENSOR: tensor parallelism inside a node, pipeline parallelism
            across nodes. LAYERS: layers over the GPUs of one node.
        tensor_parallel: Size that the manifest requests, for TENSOR; None: any.
        pipeline_parallel: Size that the manifest requests, for TENSOR; None: the number of nodes.
    """
    is_tensor = splitting is Splitting.TENSOR
    if is_tensor and (pipeline_parallel or (tensor_parallel or 1) > gpu_class.gpus_per_node):
        for tensor in [tensor_parallel] if tensor_parallel else range(1, gpu_class.gpus_per_node + 1):
            yield from requested_layout(name, gpu_class, tensor, pipeline_parallel or 1)
        return
    most = 1 if splitting is Splitting.NONE else gpu_class.gpus_per_node
    for gpus in range(1, most + 1):
        parallelism = Parallelism(tensor=gpus) if is_tensor else Parallelism(pipeline=gpus, is_by_bytes=True)
        yield Shape(gpu_class=name, gpus_per_node=gpus, tensor_parallel=parallelism.tensor), parallelism
    if not is_tensor:
        return
    for nodes in range(2, gpu_class.nodes + 1):
        # Whole nodes first. Fewer GPUs per node help only if the number of all of them does not divide the model.
        for gpus in range(gpu_class.gpus_per_node, 0, -1):
            yield (
                Shape(gpu_class=name, nodes=nodes, gpus_per_node=gpus, tensor_parallel=gpus, pipeline_parallel=nodes),
                Parallelism(tensor=gpus, pipeline=nodes),
            )


def requested_layout(
    name: str, gpu_class: GpuClass, tensor_parallel: int, pipeline_parallel: int
) -> Iterator[tuple[Shape, Parallelism]]:
    """Yield the layout with the fewest nodes for the requested sizes, if the class has enough nodes.

    Pipeline stages may share a node, and tensor parallelism may span nodes. A tensor-parallel group fills whole nodes,
    or shares a node with other whole groups.
    """
    for nodes in range(1, gpu_class.nodes + 1):
        gpus, rest = divmod(tensor_parallel * pipeline_parallel, nodes)
        if not rest and gpus <= gpu_class.gpus_per_node and 0 in (gpus % tensor_parallel, tensor_parallel % gpus):
            shape = Shape(
                gpu_class=name,
                nodes=nodes,
                gpus_per_node=gpus,
                tensor_parallel=tensor_parallel,
                pipeline_parallel=pipeline_parallel,
            )
            yield shape, Parallelism(tensor=tensor_parallel, pipeline=pipeline_parallel)
            return
