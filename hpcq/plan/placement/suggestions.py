"""Suggestions for a variant that cannot be placed: another scheme, more nodes, a shorter length.

Every suggestion was tried and fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hpcq.catalog.kernels import find_kernels, has_kernels
from hpcq.catalog.number_formats import BITS
from hpcq.catalog.schemes import find_scheme, with_fitting_group_size
from hpcq.catalog.tools import backends
from hpcq.catalog.unquantized_modules import quantization_problem
from hpcq.core.work_records import Calibration, Scheme, UnitKind
from hpcq.manifest.profiles import Profile
from hpcq.plan.memory.gpu_memory import GPU_MEMORY_UTILIZATION, TYPICAL_LENGTH
from hpcq.plan.placement.candidates import PlacementError, place_evaluation, place_quantization
from hpcq.plan.placement.requirements import EvaluationRequirements

_SCHEMES = ("fp8", "gptq-w8a16", "gptq-w4a16")
"""Suggested schemes, from the most bits to the fewest. The first that fits with the nearest number of bits is named."""
_MAX_ADDED_NODES = 8
_MIN_SAMPLES = 32
_CALIBRATION = Calibration(digest=None, samples=128, sequence_length=2048)
"""A manifest's default; assumed for suggested schemes if the variant itself needs no calibration."""


def suggest(
    profile: Profile,
    requirements: EvaluationRequirements,
    calibration: Calibration | None,
    on_fallback: EvaluationRequirements | None = None,
) -> str:
    """Return alternatives as text, joined by "or". Each alone is enough for memory and kernels.

    Args:
        profile: The cluster.
        requirements: The evaluation that cannot be placed.
        calibration: The variant's calibration, if it has one.
        on_fallback: The same evaluation with the backend's fallback, or else with the backend itself.
    """
    calibration = calibration or _CALIBRATION
    found = [
        *_settings(profile, requirements, calibration),
        *_samples(profile, requirements, calibration),
        *_schemes(profile, requirements, calibration),
        *_nodes(profile, requirements, calibration),
    ]
    found += _lengths(profile, requirements, calibration)
    if not found and on_fallback:
        found = [*_backends(profile, on_fallback, calibration)] or [*_batches(profile, on_fallback, calibration)]
        found = found or [
            *_offloads(profile, on_fallback, calibration, is_named=requirements.backend == on_fallback.backend)
        ]
    return " or ".join(found) or "a GPU class with more memory, or with nodes that have more"


def _fits(
    profile: Profile, requirements: EvaluationRequirements, calibration: Calibration, *, exact_only: bool = False
) -> bool:
    """Whether the variant can be quantized and evaluated; exact_only: by a kernel that computes exactly the scheme."""
    try:
        if requirements.is_quantized_here:
            place_quantization(profile, requirements.model, requirements.scheme, calibration)
        kernel = place_evaluation(profile, requirements).kernel
    except PlacementError:
        return False
    return kernel is None or kernel.matches_scheme or not exact_only


def _settings(profile: Profile, requirements: EvaluationRequirements, calibration: Calibration) -> Iterator[str]:
    if requirements.tensor_parallel is not None and _fits(
        profile, replace(requirements, tensor_parallel=None), calibration
    ):
        yield "remove evaluate.engine.tensor_parallel_size"
    if requirements.pipeline_parallel is not None and _fits(
        profile, replace(requirements, pipeline_parallel=None), calibration
    ):
        yield "remove evaluate.engine.pipeline_parallel_size"
    demand = requirements.demand
    for key, default in (
        ("kv_cache_gib", replace(demand, kv_cache_bytes=None)),
        ("gpu_memory_utilization", replace(demand, gpu_memory_utilization=GPU_MEMORY_UTILIZATION)),
    ):
        if default != demand and _fits(profile, replace(requirements, demand=default), calibration):
            yield f"remove evaluate.engine.{key}"
    kernels = find_kernels(requirements.backend, requirements.scheme) if requirements.linear_backend is None else ()
    for option in dict.fromkeys(kernel.linear_backend for kernel in kernels if kernel.linear_backend):
        if _fits(profile, replace(requirements, linear_backend=option), calibration):
            yield f"evaluate.engine.linear_backend = '{option}'"
    for name, offer in profile.gpu_classes.items():
        classes = profile.gpu_classes | {name: offer.model_copy(update={"memory_gib_per_unit": None})}
        changed = profile.model_copy(update={"gpu_classes": classes})
        if offer.memory_gib_per_unit and _fits(changed, requirements, calibration):
            yield f"remove gpu_classes.{name}.memory_gib_per_unit from the profile"


def _samples(profile: Profile, requirements: EvaluationRequirements, calibration: Calibration) -> Iterator[str]:
    """Halve the calibration samples until they fit: some methods keep their activations on one GPU."""
    samples = calibration.samples // 2
    while requirements.scheme.needs_calibration and samples >= _MIN_SAMPLES:
        if _fits(profile, requirements, replace(calibration, samples=samples)):
            yield f"calibration.samples = {samples}"
            return
        samples //= 2


def _schemes(profile: Profile, requirements: EvaluationRequirements, calibration: Calibration) -> Iterator[str]:
    if not has_kernels(requirements.backend) or requirements.is_of_others:
        return
    bits = BITS[requirements.scheme.weights]
    others = [
        scheme
        for name in _SCHEMES
        if name != requirements.scheme.name and (scheme := _fitting_scheme(name, requirements))
        if not (requirements.model and quantization_problem(requirements.model.config, scheme))
    ]
    for scheme in sorted(others, key=lambda scheme: abs(BITS[scheme.weights] - bits)):
        if _fits(profile, replace(requirements, scheme=scheme), calibration, exact_only=True):
            yield scheme.name
            return


def _fitting_scheme(name: str, requirements: EvaluationRequirements) -> Scheme | None:
    """Return the scheme with a group size that divides the widths of the model's layers."""
    scheme, model = find_scheme(name), requirements.model
    return with_fitting_group_size(scheme, model) if scheme and model else scheme


def _nodes(profile: Profile, requirements: EvaluationRequirements, calibration: Calibration) -> Iterator[str]:
    """Add the fewest nodes that are enough, to one class."""
    evaluating = {name: offer for name, offer in profile.gpu_classes.items() if UnitKind.EVALUATE.value in offer.roles}
    for added in range(1, _MAX_ADDED_NODES + 1):
        for name, offer in evaluating.items():
            larger = offer.model_copy(update={"nodes": offer.nodes + added})
            changed = profile.model_copy(update={"gpu_classes": {**profile.gpu_classes, name: larger}})
            if offer.gpus_per_node and _fits(changed, requirements, calibration):
                yield f"{added} more node{'s' if added > 1 else ''} of {name} (nodes = {larger.nodes})"
                return


def _lengths(profile: Profile, requirements: EvaluationRequirements, calibration: Calibration) -> Iterator[str]:
    """Halve the length until it fits, but not below the prompts of typical benchmarks."""
    length = requirements.demand.length // 2
    while backends()[requirements.backend].reserves_kv_cache and length >= TYPICAL_LENGTH:
        shorter = replace(requirements, demand=replace(requirements.demand, length=length))
        if _fits(profile, shorter, calibration):
            yield f"evaluate.max_length = {length}"
            return
        length //= 2


def _backends(profile: Profile, requirements: EvaluationRequirements, calibration: Calibration) -> Iterator[str]:
    if _fits(profile, requirements, calibration):
        yield f"evaluate.backend = '{requirements.backend}'"


def _offloads(
    profile: Profile, requirements: EvaluationRequirements, calibration: Calibration, *, is_named: bool
) -> Iterator[str]:
    """Offload to one level further than allowed (cpu, then disk). Also name the backend unless the manifest does."""
    offload = {"none": "cpu", "cpu": "disk"}.get(requirements.offload)
    if offload and _fits(profile, replace(requirements, offload=offload), calibration):
        backend = "" if is_named else f"evaluate.backend = '{requirements.backend}' with "
        yield f"{backend}evaluate.offload = '{offload}'"


def _batches(profile: Profile, requirements: EvaluationRequirements, calibration: Calibration) -> Iterator[str]:
    """Halve the batch until it fits."""
    sequences = requirements.demand.sequences // 2
    while sequences:
        fewer = replace(requirements, demand=replace(requirements.demand, sequences=sequences))
        if _fits(profile, fewer, calibration):
            yield f"evaluate.batch_size = {sequences}"
            return
        sequences //= 2
