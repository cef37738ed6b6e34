"""Offloading with accelerate: distribution of weights over the GPUs, the host memory and the disk of a node."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from hpcq.catalog.gpus import GPU
from hpcq.catalog.model_shape import ModelShape
from hpcq.core.frozen import dataclass
from hpcq.core.layer_split import bytes_per_place, fill
from hpcq.core.work_records import Scheme
from hpcq.evaluate.prefix.batching import PREFIX_CACHE_SHARE
from hpcq.plan.memory.gpu_memory import GpuMemory, MemoryDemand, Parallelism, gpu_memory, has_large_batch, loaded_scheme
from hpcq.plan.memory.weights import GIB, block_bytes, embedding_bytes, linear_bytes, part_bytes, value_bytes

OffloadTarget = Literal["cpu", "disk"]

PROCESS_BYTES = 4 * GIB
"""Host memory of a process with its libraries, and of buffers while it loads weights. An assumption."""

HOST_SHARE = 0.9
"""Share of the remaining host memory that weights may use."""


@dataclass(frozen=True, kw_only=True)
class OffloadPlan:
    """Distribution of a model's weights over the GPUs, the host memory and the disk of a node.

    Attributes:
        target: "cpu", or "disk" if the disk may be used as well.
        host_bytes: Weights in host memory.
        disk_bytes: Weights on the node's disk.
        total_bytes: All weights of the model.
        gpu_capacity_bytes: Maximum bytes of weights per GPU.
        host_capacity_bytes: Maximum bytes of weights in host memory.
        host_request_gib: Host memory that the job must request.
        gpu_memory: Memory of the fullest GPU; None without GPUs.
    """

    target: OffloadTarget
    host_bytes: int
    disk_bytes: int
    total_bytes: int
    gpu_capacity_bytes: tuple[int, ...]
    host_capacity_bytes: int
    host_request_gib: float
    gpu_memory: GpuMemory | None

    @property
    def description(self) -> str:
        """A sentence, without full stop, on where the weights are and why."""
        places = []
        if self.host_bytes and self.gpu_capacity_bytes:
            places.append(f"{self.host_bytes / GIB:.1f} GiB of its weights in host memory")
        if self.disk_bytes:
            places.append(f"{self.disk_bytes / GIB:.1f} GiB {'' if places else 'of its weights '}on the node's disk")
        destination = "the GPU" if self.gpu_capacity_bytes else "memory"
        return (
            f"{' and '.join(places)} are copied to {destination} for each forward pass, which is slow, because no class"
            f" holds all {self.total_bytes / GIB:.1f} GiB"
        )


def plan_offload(
    model: ModelShape,
    scheme: Scheme,
    demand: MemoryDemand,
    target: OffloadTarget,
    *,
    gpu: GPU | None,
    gpus: int,
    host_gib: float,
) -> OffloadPlan | None:
    """Distribute the weights over one node; None if they do not fit.

    Args:
        model: Sizes of the model.
        scheme: Scheme of the weights in memory, after decompression.
        demand: Settings of the backend.
        target: Where weights may be offloaded to.
        gpu: Type of the GPUs; None: the node computes on its cores.
        gpus: Number of GPUs; 0 without GPUs.
        host_gib: Maximum host memory of a job.
    """
    scheme = loaded_scheme(scheme, demand)
    largest = max(embedding_bytes(model, value_bytes(scheme)), *_tensor_bytes(model, scheme))
    without_weights = list(_without_weights(model, scheme, demand, gpu, gpus)) if gpu else []
    gpu_capacities = [
        int(gpu.memory_gib * demand.gpu_memory_utilization * GIB) - used.total for used in without_weights if gpu
    ]
    host = int((host_gib * GIB - PROCESS_BYTES) * HOST_SHARE)
    if not gpu:
        used = gpu_memory(model, scheme, Parallelism(), demand)
        host -= used.kv_cache + used.activations
    capacities = [float(capacity) for capacity in gpu_capacities]
    if capacities:
        capacities[0] -= largest  # offloaded weights are copied to the first GPU
    capacities += [host, math.inf] if target == "disk" else [host]
    sizes = part_bytes(model, scheme)
    places = fill(sizes, capacities)
    if places is None or places[0] != 0:
        return None  # embeddings must be in the first place, where the input is
    placed = bytes_per_place(sizes, places, len(capacities))
    on_gpus, on_host = placed[: len(gpu_capacities)], placed[len(gpu_capacities)]
    on_disk = placed[len(gpu_capacities) + 1] if target == "disk" else 0
    # The worker also counts buffers, so its distribution may differ by one block.
    host_capacity = min(host, on_host + 2 * block_bytes(model, scheme, 0))
    fullest = None
    if without_weights:
        copied = [largest, *(0 for _ in without_weights[1:])]
        fullest = max(
            (
                GpuMemory(
                    weights=weights + buffer,
                    kv_cache=used.kv_cache,
                    activations=used.activations,
                    engine=used.engine,
                )
                for used, weights, buffer in zip(without_weights, on_gpus, copied, strict=True)
            ),
            key=lambda memory: memory.total,
        )
    return OffloadPlan(
        target=target,
        host_bytes=on_host,
        disk_bytes=on_disk,
        total_bytes=sum(placed),
        gpu_capacity_bytes=tuple(gpu_capacities),
        host_capacity_bytes=host_capacity,
        host_request_gib=host_gib - (host - host_capacity) / HOST_SHARE / GIB,
        gpu_memory=fullest,
    )


def _tensor_bytes(model: ModelShape, scheme: Scheme) -> Iterator[int]:
    """Yield the bytes of what is copied at once: a linear layer, or all experts of a block, which are fused."""
    for block in model.kinds:
        yield from (linear_bytes(linear, scheme) for linear in block.linears)
        if block.experts:
            yield block.experts.count * sum(linear_bytes(linear, scheme) for linear in block.experts.linears)


def _without_weights(
    model: ModelShape, scheme: Scheme, demand: MemoryDemand, gpu: GPU, gpus: int
) -> Iterator[GpuMemory]:
    """Yield the memory of each GPU without weights. The first computes all offloaded blocks, with their KV cache."""
    is_large = has_large_batch(gpu.memory_gib, gpu.name)
    share = gpu_memory(model, scheme, Parallelism(pipeline=gpus, is_by_bytes=True), demand, has_large_batch=is_large)
    whole = gpu_memory(model, scheme, Parallelism(), demand, has_large_batch=is_large)
    for index in range(gpus):
        cache = share.kv_cache if index else max(whole.kv_cache, int(gpu.memory_gib * PREFIX_CACHE_SHARE * GIB))
        yield GpuMemory(weights=0, kv_cache=cache, activations=share.activations, engine=share.engine)
