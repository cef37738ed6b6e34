"""Possible placements of a unit: the GPU classes that have its role, its kernels and enough memory.

vLLM runs tensor parallel inside a node and pipeline parallel across nodes; accelerate distributes layers over the GPUs
of one node; a plugin declares what it does. A class whose kernels deviate from the scheme ranks after all classes that
compute exactly the scheme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from hpcq.catalog.architectures import architecture_problem
from hpcq.catalog.gpus import GPU
from hpcq.catalog.kernels import (
    Kernel,
    backend_title,
    find_kernel,
    find_kernels,
    format_capability,
    has_kernels,
    is_cpu_only,
)
from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.tools import Splitting, backends
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import SYNTHETIC, Calibration, Scheme, UnitKind
from hpcq.manifest.profiles import GpuClass, Profile
from hpcq.plan.memory.gpu_memory import (
    GpuMemory,
    Parallelism,
    decompressed_scheme,
    gpu_memory,
    has_large_batch,
    has_whole_experts,
    indivisible_reason,
)
from hpcq.plan.memory.offload import OffloadPlan, OffloadTarget, plan_offload
from hpcq.plan.memory.quantization import USABLE_GPU_SHARE, quantization_memory
from hpcq.plan.memory.weights import GIB
from hpcq.plan.placement.parallel_layouts import parallel_layouts, requested_layout
from hpcq.plan.placement.requirements import EvaluationRequirements
from hpcq.plan.schedule.resources import requests_own_memory
from hpcq.plan.units import Shape


class PlacementError(Exception):
    """No class of the profile can hold the unit. The message gives the numbers.

    Attributes:
        suggestion: The nearest alternative that fits; may be empty.
        is_unsupported: The backend has no code for the unit on any class; more memory does not help.
    """

    def __init__(self, reason: str, suggestion: str, *, is_unsupported: bool = False) -> None:
        super().__init__(reason)
        self.suggestion = suggestion
        self.is_unsupported = is_unsupported


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Resources and kernel of a unit.

    Attributes:
        shape: GPU class, nodes, GPUs.
        gpu_memory: Parts of the memory of the fullest GPU, for evaluations; None without GPUs, or if the model's size
            is unknown.
        kernel: Kernel that multiplies the weights, if known.
        gpu_bytes: Memory of the fullest GPU; None as for `gpu_memory`.
        offloaded: Weights that do not fit on the GPUs.
    """

    shape: Shape
    gpu_memory: GpuMemory | None = None
    kernel: Kernel | None = None
    gpu_bytes: int | None = None
    offloaded: OffloadPlan | None = None


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Why a class cannot run the unit.

    Attributes:
        reason: Phrase for the message, with numbers.
        memory_ratio: Usable divided by required memory of the fullest GPU or of the node; 0: memory does not help.
        is_unsupported: The backend has no kernel for the unit on this class.
    """

    reason: str
    memory_ratio: float = 0.0
    is_unsupported: bool = False


def place_evaluation(profile: Profile, requirements: EvaluationRequirements) -> Placement:
    """Return the placement of an evaluation with the fewest GPUs.

    Raises:
        PlacementError: No class has the role, the kernels and the memory. Its suggestion is empty.
    """
    return _smallest(evaluation_placements(profile, requirements))


def evaluation_placements(profile: Profile, requirements: EvaluationRequirements) -> list[Placement]:
    """Return, class by class, all placements on one node; if there is none, the smallest on several nodes.

    If no class can hold the weights and the manifest allows it, weights are offloaded. Then only the placements that
    offload the least are returned.

    Raises:
        PlacementError: No class has the role, the kernels and the memory. Its suggestion is empty.
    """
    offered = _classes_with_role(UnitKind.EVALUATE, profile)
    if not backends()[requirements.backend].spans_nodes:
        offered = [(name, offer.model_copy(update={"nodes": 1})) for name, offer in offered]
    if problem_of_architecture := architecture_problem(requirements.backend, requirements.known_architectures):
        raise PlacementError(problem_of_architecture, "", is_unsupported=True)
    try:
        return _all_placements(offered, lambda name, offer: _evaluation_on(name, offer, requirements))
    except PlacementError as problem:
        placements = [
            placement
            for name, offer in offered
            for placement in _offloading_on(
                name, offer, requirements, requests_memory=requests_own_memory(profile, name)
            )
        ]
        if (
            not placements
            and backends()[requirements.backend].offloads
            and requirements.offload != "none"
            and not problem.is_unsupported
        ):
            raise PlacementError(
                f"{problem}; also with evaluate.offload = '{requirements.offload}'", problem.suggestion
            ) from None
        if not placements:
            raise
        minimum = min(map(_offloaded_bytes, placements))
        return [placement for placement in placements if _offloaded_bytes(placement) == minimum]


def _smallest(placements: Iterable[Placement]) -> Placement:
    """Return the placement with the fewest GPUs. Those that compute exactly the scheme come first."""
    return min(placements, key=lambda one: (deviates_from_scheme(one), one.shape.gpus))


def deviates_from_scheme(placement: Placement) -> bool:
    """Whether the kernel computes in other formats than the scheme defines."""
    return placement.kernel is not None and not placement.kernel.matches_scheme


def place_quantization(
    profile: Profile, model: ModelShape | None, scheme: Scheme, calibration: Calibration | None
) -> Placement:
    """Return the placement of a quantization: one GPU, or more if host memory cannot be requested without GPUs.

    Raises:
        PlacementError: No class has the role and the memory. Its suggestion is empty.
    """
    return _smallest(quantization_placements(profile, model, scheme, calibration))


def quantization_placements(
    profile: Profile, model: ModelShape | None, scheme: Scheme, calibration: Calibration | None
) -> list[Placement]:
    """Return the smallest placement of a quantization on each class.

    Raises:
        PlacementError: No class has the role and the memory. Its suggestion is empty.
    """
    sized = None if scheme.method == SYNTHETIC else model  # the synthetic method loads no weights
    offered = _classes_with_role(UnitKind.QUANTIZE, profile)

    def place_on(name: str, offer: GpuClass) -> list[Placement] | Rejection:
        own = requests_own_memory(profile, name)
        return _quantization_on(name, offer, sized, scheme, calibration, requests_memory=own)

    return _all_placements(offered, place_on)


def place_merge(profile: Profile) -> Shape:
    """Return the placement of the merge: one core and no GPU, on a class without GPUs if there is one.

    Raises:
        PlacementError: No class has the role.
    """
    offered = _classes_with_role(UnitKind.MERGE, profile)
    return Shape(gpu_class=min(offered, key=lambda item: item[1].gpus_per_node > 0)[0])


def _classes_with_role(kind: UnitKind, profile: Profile) -> list[tuple[str, GpuClass]]:
    offered = [(name, offer) for name, offer in profile.gpu_classes.items() if kind.value in offer.roles]
    if not offered:
        raise PlacementError(
            f"no node class of profile '{profile.name}' has the role '{kind.value}'",
            f"add '{kind.value}' to the roles of a class",
        )
    return offered


def _all_placements(
    offered: list[tuple[str, GpuClass]], place_on: Callable[[str, GpuClass], list[Placement] | Rejection]
) -> list[Placement]:
    """Return the placements on all classes. If none, raise an error with the rejections, the nearest class first."""
    results = [place_on(name, offer) for name, offer in offered]
    placements = [placement for found in results if not isinstance(found, Rejection) for placement in found]
    if placements:
        return placements
    rejections = sorted((one for one in results if isinstance(one, Rejection)), key=lambda one: -one.memory_ratio)
    reason = "; ".join(dict.fromkeys(one.reason for one in rejections))
    raise PlacementError(reason, "", is_unsupported=all(one.is_unsupported for one in rejections))


def _evaluation_on(name: str, offer: GpuClass, requirements: EvaluationRequirements) -> list[Placement] | Rejection:
    gpu = None if is_cpu_only(requirements.backend) else offer.gpu_spec
    if problem := requirements.problem_on(gpu):
        return Rejection(reason=problem, is_unsupported=True)
    if gpu is None:
        return _evaluation_on_cpus(name, offer, requirements)
    return _evaluation_on_gpus(name, offer, gpu, requirements)


def _evaluation_on_gpus(
    name: str, offer: GpuClass, gpu: GPU, requirements: EvaluationRequirements
) -> list[Placement] | Rejection:
    kernel = find_kernel(
        requirements.backend,
        requirements.scheme,
        gpu.compute_capability,
        has_experts=_selects_for_experts(requirements),
        linear_backend=requirements.linear_backend,
    )
    if kernel is None and has_kernels(requirements.backend):
        place = f"on {name} ({format_capability(gpu.compute_capability)})"
        return Rejection(reason=_no_kernel(place, requirements), is_unsupported=True)
    if requirements.model is None:
        gpus = min(requirements.tensor_parallel or 1, offer.gpus_per_node)
        largest = Shape(gpu_class=name, gpus_per_node=gpus, tensor_parallel=gpus)
        requested = requested_layout(
            name, offer, requirements.tensor_parallel or 1, requirements.pipeline_parallel or 1
        )
        return [Placement(shape=next((shape for shape, _ in requested), largest), kernel=kernel)]
    usable = gpu.memory_gib * requirements.demand.gpu_memory_utilization * GIB
    found: list[Placement] = []
    nearest: Rejection | None = None
    where = "on one node" if offer.nodes == 1 else f"evenly on up to {offer.nodes} nodes"
    requested_gpus = (requirements.tensor_parallel or 1) * (requirements.pipeline_parallel or 1)
    reason = f"{requested_gpus} GPUs do not fit {where}"
    splitting = backends()[requirements.backend].splitting
    is_tensor = splitting is Splitting.TENSOR
    for layout in parallel_layouts(
        name, offer, splitting, requirements.tensor_parallel, requirements.pipeline_parallel
    ):
        shape, parallelism = _with_experts(layout, requirements) if is_tensor else layout
        if found and (shape.nodes > 1 or not is_tensor):
            break  # more nodes or stages gain nothing: stages wait for each other
        if not _is_allowed(requirements, parallelism):
            continue
        problem = indivisible_reason(requirements.model, requirements.scheme, parallelism) if is_tensor else None
        if problem:
            reason = problem
            continue
        memory = _gpu_memory(requirements, parallelism, gpu)
        if memory.total <= usable:
            found.append(Placement(shape=shape, gpu_memory=memory, kernel=kernel, gpu_bytes=memory.total))
        elif nearest is None or usable / memory.total > nearest.memory_ratio:
            nearest = Rejection(
                reason=f"needs {memory.total / GIB:.1f} GiB per GPU {_layout(parallelism, splitting)} on"
                f" {name}, which has {usable / GIB:.1f}",
                memory_ratio=usable / memory.total,
            )
    return found or nearest or Rejection(reason=f"cannot be split on {name}: {reason}")


def _selects_for_experts(requirements: EvaluationRequirements) -> bool:
    """Return whether a kernel that the manifest requests must also compute experts."""
    return requirements.linear_backend is not None and bool(requirements.model and requirements.model.experts)


def _with_experts(layout: tuple[Shape, Parallelism], requirements: EvaluationRequirements) -> tuple[Shape, Parallelism]:
    """Return the layout with expert parallelism where the model and the manifest want it."""
    (shape, parallelism), model, wanted = layout, requirements.model, requirements.expert_parallel
    if model is None or not has_whole_experts(model, requirements.scheme, parallelism.tensor, requested=wanted):
        return layout
    return replace(shape, expert_parallel=True), replace(parallelism, divides_experts=True)


def _is_allowed(requirements: EvaluationRequirements, parallelism: Parallelism) -> bool:
    tensor, pipeline = requirements.tensor_parallel, requirements.pipeline_parallel
    return tensor in (None, parallelism.tensor) and pipeline in (None, parallelism.pipeline)


def _offloading_on(
    name: str, offer: GpuClass, requirements: EvaluationRequirements, *, requests_memory: bool
) -> Iterator[Placement]:
    """Yield all placements on one node of the class with the allowed offload."""
    gpu, model = offer.gpu_spec, requirements.model
    kernel = find_kernel(requirements.backend, requirements.scheme, gpu.compute_capability if gpu else None)
    can_offload = backends()[requirements.backend].offloads and requirements.offload != "none"
    if not can_offload or model is None or kernel is None:
        return
    # A quantized checkpoint is decompressed in memory.
    to: OffloadTarget = "disk" if requirements.offload == "disk" and not requirements.scheme.is_quantized else "cpu"
    for gpus in range(1, offer.gpus_per_node + 1) if gpu else (0,):
        share = 1.0 if requests_memory or not gpus else gpus / offer.gpus_per_node
        host_gib = offer.memory_gib_per_unit or offer.memory_gib * share
        found = plan_offload(
            model, _loaded_scheme(requirements), requirements.demand, to, gpu=gpu, gpus=gpus, host_gib=host_gib
        )
        if found:
            shape = Shape(
                gpu_class=name, gpus_per_node=gpus, host_memory_gib=min(math.ceil(found.host_request_gib), host_gib)
            )
            total = found.gpu_memory.total if found.gpu_memory else None
            yield Placement(shape=shape, gpu_memory=found.gpu_memory, kernel=kernel, gpu_bytes=total, offloaded=found)


def _offloaded_bytes(placement: Placement) -> tuple[int, int]:
    """Return the sort key of offloaded bytes: those on disk count first, then those in host memory."""
    found = placement.offloaded
    return (found.disk_bytes, found.host_bytes) if found else (0, 0)


def _layout(parallelism: Parallelism, splitting: Splitting) -> str:
    return f"at {parallelism}" if splitting is Splitting.TENSOR else f"with layers over {parallelism.gpus}"


def _gpu_memory(requirements: EvaluationRequirements, parallelism: Parallelism, gpu: GPU) -> GpuMemory:
    if requirements.model is None:
        raise TypeError("the memory of a model of unknown size cannot be estimated")
    return gpu_memory(
        requirements.model,
        _loaded_scheme(requirements),
        parallelism,
        requirements.demand,
        has_large_batch=has_large_batch(gpu.memory_gib, gpu.name),
        stored_bytes=_loaded_bytes(requirements),
    )


def _loaded_bytes(requirements: EvaluationRequirements) -> int | None:
    """Return the bytes of the checkpoint's tensors, unless the backend decompresses them."""
    return None if backends()[requirements.backend].decompresses else requirements.stored_bytes


def _loaded_scheme(requirements: EvaluationRequirements) -> Scheme:
    scheme = requirements.scheme
    decompresses = backends()[requirements.backend].decompresses and scheme.is_quantized
    return decompressed_scheme(scheme) if decompresses else scheme


def _evaluation_on_cpus(
    name: str, offer: GpuClass, requirements: EvaluationRequirements
) -> list[Placement] | Rejection:
    """Place an evaluation on a node's cores. Its memory must hold the weights; only the profile requests it."""
    has_experts = bool(requirements.model and requirements.model.experts)
    kernel = find_kernel(requirements.backend, requirements.scheme, None, has_experts=has_experts)
    if kernel is None and has_kernels(requirements.backend):
        lacks_experts = find_kernel(requirements.backend, requirements.scheme, None) is not None
        place = f"in experts on the CPUs of {name}" if lacks_experts else f"on the CPUs of {name}"
        return Rejection(reason=_no_kernel(place, requirements), is_unsupported=True)
    placement = [Placement(shape=Shape(gpu_class=name), kernel=kernel)]
    if requirements.model is None or not has_kernels(requirements.backend):
        return placement
    weights = gpu_memory(
        requirements.model,
        _loaded_scheme(requirements),
        Parallelism(),
        requirements.demand,
        stored_bytes=_loaded_bytes(requirements),
    ).weights
    usable = (offer.memory_gib_per_unit or offer.memory_gib) * GIB
    if weights <= usable:
        return placement
    return Rejection(
        reason=f"needs {weights / GIB:.1f} GiB of a node's memory on {name}, which has {usable / GIB:.1f}",
        memory_ratio=usable / weights,
    )


def _no_kernel(place: str, requirements: EvaluationRequirements) -> str:
    scheme = requirements.scheme
    formats = f"{scheme.weights} weights with {scheme.activations} activations"
    if scheme.checkpoint_format:
        formats += f" of a checkpoint in the format '{scheme.checkpoint_format}'"
    ranges = dict.fromkeys(kernel.capability_range for kernel in find_kernels(requirements.backend, scheme))
    supported = f"it does so {', or '.join(ranges)}" if ranges else "no GPU helps"
    return f"{backend_title(requirements.backend)} does not compute {formats} {place}: {supported}"


def _quantization_on(
    name: str,
    offer: GpuClass,
    model: ModelShape | None,
    scheme: Scheme,
    calibration: Calibration | None,
    *,
    requests_memory: bool,
) -> list[Placement] | Rejection:
    """Place a quantization on one GPU. If it cannot request memory, add GPUs until their share of memory is enough."""
    gpu = offer.gpu_spec
    smallest = Shape(gpu_class=name, gpus_per_node=1 if gpu else 0)
    if model is None:
        return [Placement(shape=smallest)]
    memory = quantization_memory(model, scheme, calibration, on_gpu=gpu is not None)
    if gpu and memory.gpu_bytes > gpu.memory_gib * USABLE_GPU_SHARE * GIB:
        usable = gpu.memory_gib * USABLE_GPU_SHARE
        return Rejection(
            reason=f"quantizing needs {memory.gpu_bytes / GIB:.1f} GiB on one GPU of {name}, which has {usable:.1f}",
            memory_ratio=usable * GIB / memory.gpu_bytes,
        )
    needed_gib, largest_gib = memory.host_bytes / GIB, offer.memory_gib_per_unit or offer.memory_gib
    if requests_memory:
        largest_gib = offer.memory_gib
    if needed_gib > largest_gib:
        return Rejection(
            reason=f"quantizing needs {needed_gib:.1f} GiB of a node's memory on {name}, which has {largest_gib:.1f}",
            memory_ratio=largest_gib / needed_gib,
        )
    shape, share_gib = smallest, offer.memory_gib / offer.gpus_per_node if gpu else 0.0
    if needed_gib > (offer.memory_gib_per_unit or share_gib):
        if requests_memory:
            shape = replace(smallest, host_memory_gib=min(math.ceil(needed_gib), offer.memory_gib))
        elif gpu:
            shape = replace(smallest, gpus_per_node=min(math.ceil(needed_gib / share_gib), offer.gpus_per_node))
    return [Placement(shape=shape, gpu_bytes=memory.gpu_bytes or None)]
