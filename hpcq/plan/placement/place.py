"""Where a unit can run: the GPU classes that offer the role, have the kernels and the memory; and the fewest GPUs.

Tensor parallel inside a node, pipeline parallel across nodes (vLLM alone does that); accelerate spreads layers over one
node. A class whose kernels compute something else than the scheme says comes after all that compute it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from hpcq.catalog.gpus import GPU
from hpcq.catalog.kernels import (
    dotted,
    find_kernel,
    find_kernels,
    has_architecture,
    has_kernels,
    title_of,
)
from hpcq.catalog.models import ModelShape
from hpcq.core.work import Calibration, Kind, Scheme
from hpcq.manifest.profiles import GpuClass, Profile
from hpcq.plan.memory.gpu_memory import Need, Split, decompressed, indivisible, large, need_of
from hpcq.plan.memory.offload import Where, offloaded
from hpcq.plan.memory.parallel_layouts import shapes, shapes_as_told
from hpcq.plan.memory.quantization import GPU_SHARE, quantization_need
from hpcq.plan.memory.weights import GIB
from hpcq.plan.placement.records import CannotPlace, Evaluation, Obstacle, Placement
from hpcq.plan.units import Shape


def place_evaluation(profile: Profile, wanted: Evaluation) -> Placement:
    """The best place for an evaluation.

    Raises:
        CannotPlace: nothing in the profile has the role, the kernels or the memory. Its cure is empty.
    """
    return fewest(evaluation_options(profile, wanted))


def evaluation_options(profile: Profile, wanted: Evaluation) -> list[Placement]:
    """Every place of one node that can hold it, and of several nodes the fewest that can, class by class.

    Weights are offloaded where that is allowed, and no class holds them without; then it is where the least are.

    Raises:
        CannotPlace: nothing in the profile has the role, the kernels or the memory. Its cure is empty.
    """
    offered = _offered(Kind.EVALUATE, profile)
    if wanted.model and not has_architecture(wanted.backend, wanted.model.architecture):
        raise CannotPlace(f"{title_of(wanted.backend)} has no {wanted.model.architecture}", "", is_backend=True)
    try:
        return _options(offered, lambda name, offer: _evaluation_on(name, offer, wanted))
    except CannotPlace as problem:
        options = [option for name, offer in offered for option in _offloading_on(name, offer, wanted)]
        if not options and wanted.backend == "accelerate" and wanted.offload != "none" and not problem.is_backend:
            raise CannotPlace(f"{problem}; also with evaluate.offload = '{wanted.offload}'", problem.cure) from None
        if not options:
            raise
        least = min(map(_off_the_gpus, options))
        return [option for option in options if _off_the_gpus(option) == least]


def fewest(options: Iterable[Placement]) -> Placement:
    """The one with the fewest GPUs, of those first that compute what the scheme says."""
    return min(options, key=lambda one: (is_unfaithful(one), one.shape.gpus))


def is_unfaithful(placement: Placement) -> bool:
    """Whether what is computed there is not what the scheme says."""
    return placement.kernel is not None and not placement.kernel.faithful


def place_quantization(
    profile: Profile, model: ModelShape | None, scheme: Scheme, calibration: Calibration | None
) -> Placement:
    """The best place for a quantization: one GPU, with as many more as its share of the host's memory takes.

    Raises:
        CannotPlace: nothing in the profile has the role, or the memory. Its cure is empty.
    """
    return fewest(quantization_options(profile, model, scheme, calibration))


def quantization_options(
    profile: Profile, model: ModelShape | None, scheme: Scheme, calibration: Calibration | None
) -> list[Placement]:
    """The best place of each class for a quantization.

    Raises:
        CannotPlace: nothing in the profile has the role, or the memory. Its cure is empty.
    """
    sized = None if scheme.method == "synthetic" else model  # made up, and in place of nothing
    offered = _offered(Kind.QUANTIZE, profile)
    return _options(offered, lambda name, offer: _quantization_on(name, offer, sized, scheme, calibration))


def place_merge(profile: Profile) -> Shape:
    """The class that merges: it takes a core, and no GPU.

    Raises:
        CannotPlace: nothing in the profile has the role.
    """
    offered = _offered(Kind.MERGE, profile)
    return Shape(gpu_class=min(offered, key=lambda item: item[1].gpus_per_node > 0)[0])


def _offered(kind: Kind, profile: Profile) -> list[tuple[str, GpuClass]]:
    offered = [(name, offer) for name, offer in profile.gpu_classes.items() if kind.value in offer.roles]
    if not offered:
        raise CannotPlace(
            f"no GPU class of profile '{profile.name}' has the role '{kind.value}'",
            f"add '{kind.value}' to the roles of a class",
        )
    return offered


def _options(
    offered: list[tuple[str, GpuClass]], try_on: Callable[[str, GpuClass], list[Placement] | Obstacle]
) -> list[Placement]:
    tried = [try_on(name, offer) for name, offer in offered]
    placements = [placement for found in tried if not isinstance(found, Obstacle) for placement in found]
    if placements:
        return placements
    obstacles = sorted((one for one in tried if isinstance(one, Obstacle)), key=lambda one: -one.usable)
    sentence = "; ".join(one.sentence for one in obstacles)
    raise CannotPlace(sentence, "", is_backend=all(one.is_backend for one in obstacles))


def _evaluation_on(name: str, offer: GpuClass, wanted: Evaluation) -> list[Placement] | Obstacle:
    gpu = offer.device
    if gpu is None:
        return _evaluation_on_cpus(name, offer, wanted)
    kernel = find_kernel(wanted.backend, wanted.scheme, gpu.compute_capability)
    if kernel is None and has_kernels(wanted.backend):
        place = f"{name} ({dotted(gpu.compute_capability)})"
        return Obstacle(sentence=_no_kernel(place, wanted), is_backend=True)
    if wanted.model is None:
        gpus = min(wanted.tensor or 1, offer.gpus_per_node)
        most = Shape(gpu_class=name, gpus_per_node=gpus, tensor_parallel=gpus)
        as_told = shapes_as_told(name, offer, wanted.tensor or 1, wanted.stages or 1)
        return [Placement(shape=next((shape for shape, _ in as_told), most), kernel=kernel)]
    usable = gpu.memory_gib * wanted.demand.share * GIB
    found: list[Placement] = []
    nearest: Obstacle | None = None
    place = "a node" if offer.nodes == 1 else f"{offer.nodes} nodes, evenly"
    told = f"it has no {(wanted.tensor or 1) * (wanted.stages or 1)} GPUs in {place}"
    for shape, split in shapes(name, offer, wanted.backend, wanted.tensor, wanted.stages):
        if found and (shape.nodes > 1 or wanted.backend != "vllm"):
            break  # more of them gain nothing: stages wait for each other
        if wanted.tensor not in (None, split.tensor) or wanted.stages not in (None, split.stages):
            continue
        problem = indivisible(wanted.model, wanted.scheme, split) if wanted.backend == "vllm" else None
        if problem:
            told = problem
            continue
        need = _need(wanted, split, gpu)
        if need.total <= usable:
            found.append(Placement(shape=shape, need=need, kernel=kernel, gpu_bytes=need.total))
        elif nearest is None or usable / need.total > nearest.usable:
            nearest = Obstacle(
                sentence=f"needs {need.total / GIB:.1f} GiB a GPU {_spread(split, wanted.backend)} on {name}, which has"
                f" {usable / GIB:.1f}",
                usable=usable / need.total,
            )
    return found or nearest or Obstacle(sentence=f"cannot be split on {name}: {told}")


def _offloading_on(name: str, offer: GpuClass, wanted: Evaluation) -> Iterator[Placement]:
    """Every place on one node of the class that holds it with what may be offloaded."""
    gpu, model = offer.device, wanted.model
    kernel = find_kernel(wanted.backend, wanted.scheme, gpu.compute_capability if gpu else None)
    if wanted.backend != "accelerate" or wanted.offload == "none" or model is None or kernel is None:
        return
    # A quantized checkpoint is decompressed in memory.
    to: Where = "disk" if wanted.offload == "disk" and not wanted.scheme.is_quantized else "cpu"
    host_gib = offer.memory_gib_per_unit or offer.memory_gib
    for gpus in range(1, offer.gpus_per_node + 1) if gpu else (0,):
        found = offloaded(model, _loaded(wanted), wanted.demand, to, gpu=gpu, gpus=gpus, host_gib=host_gib)
        if found:
            shape = Shape(gpu_class=name, gpus_per_node=gpus, host_gib=min(math.ceil(found.host_asked_gib), host_gib))
            total = found.need.total if found.need else None
            yield Placement(shape=shape, need=found.need, kernel=kernel, gpu_bytes=total, offloaded=found)


def _off_the_gpus(placement: Placement) -> tuple[int, int]:
    """What a disk holds counts before what the host's memory does."""
    found = placement.offloaded
    return (found.disk, found.host) if found else (0, 0)


def _spread(split: Split, backend: str) -> str:
    return f"at {split}" if backend == "vllm" else f"with layers over {split.gpus}"


def _need(wanted: Evaluation, split: Split, gpu: GPU) -> Need:
    if wanted.model is None:
        raise TypeError("a model of unknown sizes has no need that can be told")
    return need_of(wanted.model, _loaded(wanted), split, wanted.demand, is_large_gpu=large(gpu.memory_gib, gpu.name))


def _loaded(wanted: Evaluation) -> Scheme:
    scheme = wanted.scheme
    return decompressed(scheme) if wanted.backend == "accelerate" and scheme.is_quantized else scheme


def _evaluation_on_cpus(name: str, offer: GpuClass, wanted: Evaluation) -> list[Placement] | Obstacle:
    """On a node's cores: its memory must hold the weights, and is asked for by nobody but the profile."""
    kernel = find_kernel(wanted.backend, wanted.scheme, None)
    if kernel is None and has_kernels(wanted.backend):
        return Obstacle(sentence=_no_kernel(f"the CPUs of {name}", wanted), is_backend=True)
    placement = [Placement(shape=Shape(gpu_class=name), kernel=kernel)]
    if wanted.model is None or not has_kernels(wanted.backend):
        return placement
    weights = need_of(wanted.model, _loaded(wanted), Split(), wanted.demand).weights
    usable = (offer.memory_gib_per_unit or offer.memory_gib) * GIB
    if weights <= usable:
        return placement
    return Obstacle(
        sentence=f"needs {weights / GIB:.1f} GiB of a node's memory on {name}, which has {usable / GIB:.1f}",
        usable=usable / weights,
    )


def _no_kernel(place: str, wanted: Evaluation) -> str:
    scheme = wanted.scheme
    formats = f"{scheme.weights} weights with {scheme.activations} activations"
    kernels = find_kernels(wanted.backend, scheme)
    runs = f"it does so {', or '.join(kernel.where for kernel in kernels)}" if kernels else "no GPU helps"
    return f"{title_of(wanted.backend)} does not compute {formats} on {place}: {runs}"


def _quantization_on(
    name: str, offer: GpuClass, model: ModelShape | None, scheme: Scheme, calibration: Calibration | None
) -> list[Placement] | Obstacle:
    gpu = offer.device
    smallest = Placement(shape=Shape(gpu_class=name, gpus_per_node=1 if gpu else 0))
    if model is None:
        return [smallest]
    need = quantization_need(model, scheme, calibration, on_gpu=gpu is not None)
    if gpu and need.gpu > gpu.memory_gib * GPU_SHARE * GIB:
        usable = gpu.memory_gib * GPU_SHARE
        return Obstacle(
            sentence=f"quantizing needs {need.gpu / GIB:.1f} GiB of one GPU on {name}, which has {usable:.1f}",
            usable=usable * GIB / need.gpu,
        )
    for gpus in range(1 if gpu else 0, offer.gpus_per_node + 1):
        share = offer.memory_gib * gpus / offer.gpus_per_node if gpus else offer.memory_gib
        if need.host <= (offer.memory_gib_per_unit or share) * GIB:
            return [Placement(shape=Shape(gpu_class=name, gpus_per_node=gpus), gpu_bytes=need.gpu or None)]
    most = (offer.memory_gib_per_unit or offer.memory_gib) * GIB
    return Obstacle(
        sentence=f"quantizing needs {need.host / GIB:.1f} GiB of a node's memory on {name}, which has {most / GIB:.1f}",
        usable=most / need.host,
    )
