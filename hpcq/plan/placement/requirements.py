"""Requirements of an evaluation on its placement: backend, fixed parallel sizes, and the memory needed to start."""

from __future__ import annotations

from dataclasses import replace

from hpcq.catalog.architectures import cpu_problem
from hpcq.catalog.backend_limits import Computation, model_problem
from hpcq.catalog.gpus import GPU
from hpcq.catalog.kernels import kv_cache_problem
from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.tools import backends
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import Scheme, Variant
from hpcq.manifest import ResolvedManifest
from hpcq.manifest.resolved import EvaluateSettings
from hpcq.plan.memory.gpu_memory import TYPICAL_LENGTH, MemoryDemand
from hpcq.plan.memory.weights import GIB


@dataclass(frozen=True, kw_only=True)
class EvaluationRequirements:
    """An evaluation to place.

    Attributes:
        model: Sizes of the model; None: unknown, so one GPU is used and nothing is checked.
        architectures: Names in its config.json; None: unknown, or that of `model`.
        scheme: The quantization scheme.
        backend: The backend to place for.
        demand: Memory demand in addition to the weights.
        stored_bytes: Bytes of the checkpoint's tensors, if others quantized it; None: they follow from the scheme.
        tensor_parallel: GPUs that share each weight matrix; None: as many as needed.
        pipeline_parallel: Groups of GPUs that share the layers; None: as many as needed.
        expert_parallel: GPUs that share weight matrices have whole experts; None: as `has_whole_experts` decides.
        offload: Where weights that do not fit on the GPUs may be stored: none, cpu or disk.
        dtype: Type of the computation.
        max_length: Maximum tokens of prompt and text in the manifest; None: the model's.
        is_of_others: Others quantized the checkpoint.
        linear_backend: Kernels that the manifest requests (evaluate.engine.linear_backend); None: those of the backend.
    """

    model: ModelShape | None
    scheme: Scheme
    backend: str
    demand: MemoryDemand
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    expert_parallel: bool | None = None
    offload: str = "none"
    stored_bytes: int | None = None
    architectures: tuple[str, ...] | None = None
    dtype: str = "bfloat16"
    max_length: int | None = None
    linear_backend: str | None = None
    is_of_others: bool = False

    @property
    def is_quantized_here(self) -> bool:
        """Whether hpcq creates a quantized checkpoint."""
        return self.scheme.is_quantized and not self.is_of_others

    @property
    def known_architectures(self) -> tuple[str, ...] | None:
        """The names in its config.json, or the catalog's name; None: unknown."""
        named = self.model.architecture if self.model else None
        return (named,) if self.architectures is None and named else self.architectures

    def problem_on(self, gpu: GPU | None) -> str | None:
        """Return why the backend cannot compute the model on a GPU, or on CPUs; None: no problem is known."""
        problem = cpu_problem(self.backend, self.known_architectures) if gpu is None else None
        problem = problem or kv_cache_problem(self.backend, self.scheme, gpu.compute_capability if gpu else None)
        if problem or self.model is None:
            return problem
        capability = gpu.compute_capability if gpu else None
        computation = Computation(
            dtype=self.dtype,
            max_length=self.max_length,
            capability=capability,
            is_quantized=self.scheme.is_quantized,
        )
        return model_problem(self.backend, self.model, computation)


def evaluation_requirements(
    resolved: ResolvedManifest, settings: EvaluateSettings, variant: Variant
) -> EvaluationRequirements:
    """Return the requirements of the variant's evaluation with these settings."""
    model = resolved.shapes.get(variant.model)
    engine = dict(settings.engine)
    tensor, pipeline = engine.get("tensor_parallel_size"), engine.get("pipeline_parallel_size")
    experts, dtype = engine.get("enable_expert_parallel"), settings.dtype_for(variant.scheme)
    return EvaluationRequirements(
        model=model,
        architectures=resolved.architectures.get(variant.model),
        scheme=variant.scheme,
        backend=settings.placement_backend,
        demand=_demand(settings, model, is_float32=dtype == "float32", scheme=variant.scheme),
        dtype=dtype,
        max_length=settings.max_length,
        is_of_others=variant.checkpoint is not None,
        linear_backend=None if (linear := engine.get("linear_backend")) is None else str(linear),
        tensor_parallel=None if tensor is None else int(tensor),
        pipeline_parallel=None if pipeline is None else int(pipeline),
        expert_parallel=None if experts is None else bool(experts),
        stored_bytes=resolved.stored_bytes.get(variant.checkpoint) if variant.checkpoint else None,
        offload=settings.offload if backends()[settings.placement_backend].offloads else "none",
    )


def fallback_requirements(resolved: ResolvedManifest, variant: Variant) -> EvaluationRequirements:
    """Return the requirements of the variant's evaluation with the fallback of the backend, if it has one."""
    settings = resolved.evaluate
    fallback = backends()[settings.placement_backend].fallback
    if fallback:
        settings = replace(settings, backend=fallback, emulate=None, engine=())
    return evaluation_requirements(resolved, settings, variant)


def _demand(settings: EvaluateSettings, model: ModelShape | None, *, is_float32: bool, scheme: Scheme) -> MemoryDemand:
    """Return the memory demand at start.

    vLLM (0.32) refuses to start unless the KV cache of one prompt of the maximum length fits. Other backends reduce
    the batch if memory is short, so a small batch of prompts of typical length is assumed.
    """
    engine = dict(settings.engine)
    bounds = (settings.max_length, model.context_length if model else None)
    longest = min((bound for bound in bounds if bound), default=TYPICAL_LENGTH)
    typical = min(longest, TYPICAL_LENGTH)
    value_bytes = 4 if is_float32 else 2
    demand = MemoryDemand(length=typical, compute_bytes=value_bytes, kv_bytes=1 if scheme.kv_cache else value_bytes)
    if not backends()[settings.placement_backend].reserves_kv_cache:
        sequences = min(settings.batch_size, demand.sequences)
        return replace(demand, sequences=sequences, batched_tokens=typical)
    if longest > demand.sequences * typical:
        demand = replace(demand, sequences=1, length=longest)
    tokens, cache = engine.get("max_num_batched_tokens"), engine.get("kv_cache_gib")
    return replace(
        demand,
        batched_tokens=None if tokens is None else int(tokens),
        kv_cache_bytes=None if cache is None else int(cache * GIB),
        gpu_memory_utilization=float(engine.get("gpu_memory_utilization", demand.gpu_memory_utilization)),
    )
