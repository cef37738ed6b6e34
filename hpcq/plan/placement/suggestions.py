"""What could run where a variant cannot: the nearest scheme, the nodes that are lacking, a shorter length, a back end.

Knows how units are placed, and tries; what it names has been found to fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hpcq.catalog.kernels import has_kernels
from hpcq.catalog.schemes import find_scheme, fitting_group_size
from hpcq.core.work import Calibration, Kind, Scheme
from hpcq.manifest.profiles import Profile
from hpcq.plan.memory.gpu_memory import ORDINARY_LENGTH, SHARE
from hpcq.plan.memory.weights import BITS
from hpcq.plan.placement.place import place_evaluation, place_quantization
from hpcq.plan.placement.records import CannotPlace, Evaluation

_SCHEMES = ("fp8", "gptq-w8a16", "gptq-w4a16")
"""From the most bits to the fewest; of those that fit, the first of the nearest number of bits is named."""
_MORE_NODES = 8
_FEWEST_SAMPLES = 32
_CALIBRATION = Calibration(digest=None, samples=128, sequence_length=2048)
"""A manifest's own unless it says otherwise; reckoned with where the variant that cannot run needs none."""


def alternatives(
    profile: Profile, wanted: Evaluation, calibration: Calibration | None, slower: Evaluation | None = None
) -> str:
    """What to try, in words; each of them alone is enough, as far as memory and kernels go.

    slower: the same asked of accelerate, which takes over where vLLM has no code, or could be named instead.
    """
    calibration = calibration or _CALIBRATION
    found = [
        *_settings(profile, wanted, calibration),
        *_samples(profile, wanted, calibration),
        *_schemes(profile, wanted, calibration),
        *_nodes(profile, wanted, calibration),
    ]
    found += _lengths(profile, wanted, calibration)
    if not found and slower:
        found = [*_backends(profile, slower, calibration)] or [*_batches(profile, slower, calibration)]
        found = found or [*_offloads(profile, slower, calibration, is_named=wanted.backend == slower.backend)]
    return " or ".join(found) or "a GPU class with more memory, or with nodes that have more"


def _fits(profile: Profile, wanted: Evaluation, calibration: Calibration, *, as_it_says: bool = False) -> bool:
    """Whether it can be made and evaluated; as_it_says: by a kernel that computes no other scheme."""
    try:
        if wanted.scheme.is_quantized:
            place_quantization(profile, wanted.model, wanted.scheme, calibration)
        kernel = place_evaluation(profile, wanted).kernel
    except CannotPlace:
        return False
    return kernel is None or kernel.faithful or not as_it_says


def _settings(profile: Profile, wanted: Evaluation, calibration: Calibration) -> Iterator[str]:
    if wanted.tensor is not None and _fits(profile, replace(wanted, tensor=None), calibration):
        yield "leave evaluate.engine.tensor_parallel_size out"
    if wanted.stages is not None and _fits(profile, replace(wanted, stages=None), calibration):
        yield "leave evaluate.engine.pipeline_parallel_size out"
    demand = wanted.demand
    for key, own in (
        ("kv_cache_gib", replace(demand, kv_cache_bytes=None)),
        ("gpu_memory_utilization", replace(demand, share=SHARE)),
    ):
        if own != demand and _fits(profile, replace(wanted, demand=own), calibration):
            yield f"leave evaluate.engine.{key} out"
    for name, offer in profile.gpu_classes.items():
        whole = profile.gpu_classes | {name: offer.model_copy(update={"memory_gib_per_unit": None})}
        if offer.memory_gib_per_unit and _fits(profile.model_copy(update={"gpu_classes": whole}), wanted, calibration):
            yield f"leave gpu_classes.{name}.memory_gib_per_unit out of the profile"


def _samples(profile: Profile, wanted: Evaluation, calibration: Calibration) -> Iterator[str]:
    """Half the calibration sequences, or a quarter, and so on: what some methods keep of them must fit one GPU."""
    samples = calibration.samples // 2
    while wanted.scheme.needs_calibration and samples >= _FEWEST_SAMPLES:
        if _fits(profile, wanted, replace(calibration, samples=samples)):
            yield f"calibration.samples = {samples}"
            return
        samples //= 2


def _schemes(profile: Profile, wanted: Evaluation, calibration: Calibration) -> Iterator[str]:
    if not has_kernels(wanted.backend):
        return
    bits = BITS[wanted.scheme.weights]
    others = [scheme for name in _SCHEMES if name != wanted.scheme.name and (scheme := _fitting(name, wanted))]
    for scheme in sorted(others, key=lambda scheme: abs(BITS[scheme.weights] - bits)):
        if _fits(profile, replace(wanted, scheme=scheme), calibration, as_it_says=True):
            yield scheme.name
            return


def _fitting(name: str, wanted: Evaluation) -> Scheme | None:
    """The scheme with groups that divide the model's layers."""
    scheme = find_scheme(name)
    if scheme is None or wanted.model is None or scheme.group_size is None:
        return scheme
    size = fitting_group_size(scheme, wanted.model)
    return scheme if size in (None, scheme.group_size) else find_scheme(f"{name}-g{size}")


def _nodes(profile: Profile, wanted: Evaluation, calibration: Calibration) -> Iterator[str]:
    """The fewest nodes more, of one class."""
    roles = {name: offer for name, offer in profile.gpu_classes.items() if Kind.EVALUATE.value in offer.roles}
    for more in range(1, _MORE_NODES + 1):
        for name, offer in roles.items():
            larger = offer.model_copy(update={"nodes": offer.nodes + more})
            classes = {**profile.gpu_classes, name: larger}
            if offer.gpus_per_node and _fits(profile.model_copy(update={"gpu_classes": classes}), wanted, calibration):
                yield f"{more} more node{'s' if more > 1 else ''} of {name} (nodes = {larger.nodes})"
                return


def _lengths(profile: Profile, wanted: Evaluation, calibration: Calibration) -> Iterator[str]:
    """Half the length, or a quarter, and so on, but no shorter than what benchmarks ask."""
    length = wanted.demand.length // 2
    while wanted.backend == "vllm" and length >= ORDINARY_LENGTH:
        shorter = replace(wanted, demand=replace(wanted.demand, length=length))
        if _fits(profile, shorter, calibration):
            yield f"evaluate.max_length = {length}"
            return
        length //= 2


def _backends(profile: Profile, slower: Evaluation, calibration: Calibration) -> Iterator[str]:
    if _fits(profile, slower, calibration):
        yield "evaluate.backend = 'accelerate'"


def _offloads(profile: Profile, slower: Evaluation, calibration: Calibration, *, is_named: bool) -> Iterator[str]:
    """One more place for weights than is allowed, beside the back end that can use it."""
    allowed = {"none": "cpu", "cpu": "disk"}.get(slower.offload)
    if allowed and _fits(profile, replace(slower, offload=allowed), calibration):
        backend = "" if is_named else "evaluate.backend = 'accelerate' with "
        yield f"{backend}evaluate.offload = '{allowed}'"


def _batches(profile: Profile, slower: Evaluation, calibration: Calibration) -> Iterator[str]:
    """Half the requests at once, or a quarter, and so on."""
    sequences = slower.demand.sequences // 2
    while sequences:
        fewer = replace(slower, demand=replace(slower.demand, sequences=sequences))
        if _fits(profile, fewer, calibration):
            yield f"evaluate.batch_size = {sequences}"
            return
        sequences //= 2
