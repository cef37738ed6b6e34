"""Roofline model of an evaluation: seconds of starting, loading, prompts and generation on given hardware."""

from __future__ import annotations

from hpcq.catalog.gpus import FORMAT_FALLBACKS, GPU
from hpcq.catalog.kernels import Kernel
from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.number_formats import BITS
from hpcq.catalog.tools import BackendInfo, backends
from hpcq.core.frozen import dataclass
from hpcq.core.layer_split import stage_layers
from hpcq.core.work_records import Scheme
from hpcq.plan.cost import constants
from hpcq.plan.cost.tokens import Workload
from hpcq.plan.memory.gpu_memory import STATE_BYTES, GpuMemory, MemoryDemand
from hpcq.plan.memory.offload import OffloadPlan
from hpcq.plan.memory.weights import GIB, checkpoint_bytes
from hpcq.plan.units import Shape

_GIGA = 10**9
_TERA = 10**12
_MICRO = 10**6
_FLOAT32_BYTES = 4
_FLOAT32 = "fp32"
_COMPUTE_FORMATS = {"float32": _FLOAT32, "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of a whole evaluation, or of a quantization.

    Attributes:
        start_s: Starting, before weights are read and from then until the first answer.
        load_s: Reading weights.
        work_s: Everything else; shards divide it.
    """

    start_s: float = 0.0
    load_s: float = 0.0
    work_s: float = 0.0

    @property
    def fixed_s(self) -> float:
        """Seconds that every shard takes, independent of the number of its requests."""
        return self.start_s + self.load_s

    def seconds(self, shards: int = 1) -> float:
        """Return the seconds of one shard when the work is split into `shards`."""
        return self.fixed_s + self.work_s / shards


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Hardware of a unit.

    Attributes:
        gpu: Type of its GPUs; None: the unit computes on CPU cores.
        shape: Its nodes and GPUs.
        cores: Number of CPU cores.
        read_gb_per_s: Read rate of each node from the file system while all nodes of the unit read.
    """

    gpu: GPU | None
    shape: Shape
    cores: int = 1
    read_gb_per_s: float = constants.READ_GB_PER_S


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec:
    """What an evaluation computes, and how.

    Attributes:
        model: Sizes of the model.
        scheme: Quantization scheme of the checkpoint.
        backend: Name of the backend.
        dtype: Type of activations and unquantized weights.
        batch: Maximum number of sequences that are generated together, by backends that do not reserve a KV cache.
        demand: Settings of the engine that determine its memory.
        kernel: Kernel that multiplies the weights, if known.
        gpu_memory: Memory of the fullest GPU; None on CPUs.
        offload: Weights outside the GPUs; each forward pass transfers them.
        stored_bytes: Bytes of the checkpoint's tensors, if others quantized it; None: they follow from the scheme.
    """

    model: ModelShape
    scheme: Scheme
    backend: str
    dtype: str
    batch: int
    demand: MemoryDemand
    kernel: Kernel | None = None
    gpu_memory: GpuMemory | None = None
    offload: OffloadPlan | None = None
    stored_bytes: int | None = None

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of the checkpoint's tensors."""
        return self.stored_bytes or checkpoint_bytes(self.model, self.scheme)

    @property
    def info(self) -> BackendInfo:
        """What the registry has about the backend."""
        return backends()[self.backend]


def evaluation_cost(spec: EvaluationSpec, workload: Workload, hardware: Hardware) -> Cost:
    """Estimate the seconds of an evaluation. Every node reads all files, and the nodes read in parallel."""
    prompts = workload.scored_tokens * _prompt_token_s(spec, hardware, workload.scored_length, with_logits=True)
    prompts += workload.prompt_tokens * _prompt_token_s(spec, hardware, workload.generation_length, with_logits=False)
    pass_tokens = constants.OFFLOADED_PASS_TOKENS["gpu" if hardware.gpu else "cpu"]
    passes = (workload.scored_tokens + workload.prompt_tokens) / pass_tokens
    prompts += passes * _offload_transfer_s(spec, hardware)
    return Cost(
        start_s=spec.info.startup_s,
        load_s=read_seconds(spec.checkpoint_bytes, hardware),
        work_s=prompts + _generation_s(spec, workload, hardware),
    )


def read_seconds(count: float, hardware: Hardware) -> float:
    """Return the seconds in which every node reads `count` bytes."""
    return count / (hardware.read_gb_per_s * _GIGA)


def token_flops(model: ModelShape, length: float, *, with_logits: bool, with_all_experts: bool = False) -> float:
    """Return the FLOPs per token of a prompt of `length` tokens: every weight once, attention to half of the prompt.

    Of the experts of a block, only the active ones compute a token.
    """
    weights = model.linear_parameters if with_all_experts else model.active_linear_parameters
    logits = model.hidden_size * model.vocab_size if with_logits else 0
    attention = sum(
        count * 2 * one.heads * (one.key_dim + one.value_dim) * one.attended(length / 2)
        for one, count in model.attentions
    )
    return 2.0 * (weights + logits) + attention


def gpu_flops(gpu: GPU, dtype: str, kernel: Kernel | None = None) -> float:
    """Return the dense FLOP/s in the format in which the kernel multiplies, or in the next best that the GPU has."""
    wanted, used = _formats(gpu, dtype, kernel)
    is_scaled = wanted == _FLOAT32 and used != _FLOAT32
    return gpu.dense_tflops[used] * _TERA * (constants.FLOAT32_RATIO if is_scaled else 1.0)


def format_note(gpu: GPU, dtype: str, kernel: Kernel | None) -> str | None:
    """Return a note if the estimate is that of another number format, because the GPU does not list the right one.

    Most rows have no float32; its speed follows from the 16-bit formats (FLOAT32_RATIO), without a note.
    """
    wanted = (kernel.matmul_dtype if kernel else None) or _COMPUTE_FORMATS[dtype]
    _, used = _formats(gpu, dtype, kernel)
    if used == wanted or (wanted == _FLOAT32 and used in FORMAT_FALLBACKS):
        return None
    return f"{gpu.name} does not multiply {wanted} (hpcq/catalog/gpus.toml): estimated at its speed in {used}"


def _formats(gpu: GPU, dtype: str, kernel: Kernel | None) -> tuple[str, str]:
    """Return the number format of the multiplications, and the one whose speed the GPU has for it."""
    matmul_dtype = kernel.matmul_dtype if kernel else None
    wanted = matmul_dtype if matmul_dtype in gpu.dense_tflops else None
    wanted = wanted or _COMPUTE_FORMATS[dtype]
    return wanted, gpu.format_for(wanted)


def cpu_flops(dtype: str, cores: int) -> float:
    """Return the FLOP/s of `cores` cores."""
    return constants.CPU_GFLOPS[dtype] * _GIGA * cores


def _prompt_token_s(spec: EvaluationSpec, hardware: Hardware, length: float, *, with_logits: bool) -> float:
    """Return the seconds per prompt token in large batches."""
    flops = token_flops(spec.model, length, with_logits=with_logits)
    shape, gpu = hardware.shape, hardware.gpu
    if gpu is None:
        return flops / cpu_flops(spec.dtype, hardware.cores)
    efficiency = spec.info.prefill_efficiency
    if _is_weight_only(spec):
        efficiency *= constants.WEIGHT_ONLY_EFFICIENCY
    if shape.pipeline_parallel > 1:
        efficiency *= constants.PIPELINE_EFFICIENCY
    # accelerate distributes layers over GPUs without a pipeline: one GPU computes at a time.
    active_gpus = shape.tensor_parallel * shape.pipeline_parallel
    return flops / (active_gpus * efficiency * gpu_flops(gpu, spec.dtype, spec.kernel)) + (
        _all_reduces(spec.model, shape) * _all_reduce_s(spec, gpu, shape) / shape.pipeline_parallel
    )


def _offload_transfer_s(spec: EvaluationSpec, hardware: Hardware) -> float:
    """Return the seconds in which one forward pass transfers all offloaded weights."""
    if spec.offload is None:
        return 0.0
    seconds = spec.offload.disk_bytes / (constants.DISK_READ_GB_PER_S * _GIGA)
    return seconds + (spec.offload.host_bytes / (constants.HOST_LINK_GB_PER_S * _GIGA) if hardware.gpu else 0.0)


def _is_weight_only(spec: EvaluationSpec) -> bool:
    quantized = spec.scheme.is_quantized and not spec.info.decompresses
    return quantized and spec.kernel is not None and spec.kernel.matmul_dtype is None


def _all_reduces(model: ModelShape, shape: Shape) -> int:
    """Return the all-reduces per forward pass: after attention and after the feed-forward layer of each block."""
    return 2 * model.layers if shape.tensor_parallel > 1 else 0


def _all_reduce_s(spec: EvaluationSpec, gpu: GPU, shape: Shape) -> float:
    """Return the transfer seconds of one token's hidden state: a ring sends it 2 (n - 1) / n times, one way."""
    gpus = shape.tensor_parallel
    sent = 2 * (gpus - 1) / gpus * spec.model.hidden_size * spec.demand.compute_bytes
    return sent / (gpu.link_gb_per_s / 2 * constants.LINK_EFFICIENCY * _GIGA)


def _generation_s(spec: EvaluationSpec, workload: Workload, hardware: Hardware) -> float:
    """Return the seconds of decoding: each step reads the weights once, and the KV cache of all sequences."""
    if not workload.generated_tokens:
        return 0.0
    batch = min(_batch(spec, workload, hardware), max(1.0, workload.generations))
    cache = batch * _kv_sequence_bytes(spec, workload.generation_length, hardware.shape.tensor_parallel)
    flops = batch * token_flops(spec.model, 2 * workload.generation_length, with_logits=True)
    weights = _read_weights(spec) * _read_share(spec.model, batch)
    gpu, shape = hardware.gpu, hardware.shape
    if gpu is None:
        read_s = (weights + cache) / (constants.CPU_READ_GB_PER_S * _GIGA)
        step = read_s + flops / cpu_flops(spec.dtype, hardware.cores)
        return workload.generated_tokens / batch * (step + _offload_transfer_s(spec, hardware))
    flops_per_s = spec.info.prefill_efficiency * gpu_flops(gpu, spec.dtype, spec.kernel)
    # Pipeline stages work in parallel on parts of the batch, and each part reads its stage's weights again.
    weights_s = weights / shape.tensor_parallel / (gpu.bandwidth_gb_per_s * constants.BANDWIDTH_EFFICIENCY * _GIGA)
    active_gpus = shape.tensor_parallel * shape.pipeline_parallel
    cache_s = cache / active_gpus / (gpu.bandwidth_gb_per_s * constants.BANDWIDTH_EFFICIENCY * _GIGA)
    transfer_s = batch / shape.pipeline_parallel * _all_reduce_s(spec, gpu, shape)
    all_reduces_s = _all_reduces(spec.model, shape) * (gpu.link_latency_us / _MICRO + transfer_s)
    python_s = spec.model.layers * spec.info.layer_overhead_s
    step = max(weights_s, flops / active_gpus / flops_per_s) + cache_s + all_reduces_s + python_s
    return workload.generated_tokens / batch * (step + _offload_transfer_s(spec, hardware))


def _read_weights(spec: EvaluationSpec) -> float:
    """Return the bytes of weights as they are multiplied: some backends decompress a quantized checkpoint."""
    if spec.scheme.is_quantized and not spec.info.decompresses:
        return spec.checkpoint_bytes
    return spec.model.parameters * (_FLOAT32_BYTES if spec.dtype == "float32" else BITS["bf16"] // 8)


def _read_share(model: ModelShape, batch: float) -> float:
    """Return the share of the weights that a step of `batch` tokens reads: experts that no token chose are not read."""
    unread = sum(
        count * block.experts.parameters * (1 - block.experts.active / block.experts.count) ** batch
        for block, count in model.counts
        if block.experts
    )
    return float(1 - unread / model.parameters)


def _kv_sequence_bytes(spec: EvaluationSpec, length: float, gpus: int) -> float:
    """Return the bytes of a sequence's KV cache on all `gpus` GPUs, each of which keeps all of a latent cache."""
    return sum(
        count * one.kept_numbers(1) * (gpus if one.latent else 1) * one.attended(length) * spec.demand.kv_bytes
        for one, count in spec.model.attentions
    )


def _batch(spec: EvaluationSpec, workload: Workload, hardware: Hardware) -> float:
    """Return how many sequences are generated together: those that fit into a reserved cache, else the batch size."""
    if not spec.info.reserves_kv_cache or hardware.gpu is None or spec.gpu_memory is None:
        return float(spec.batch)
    shape, model, need = hardware.shape, spec.model, spec.gpu_memory
    cache_bytes = hardware.gpu.memory_gib * GIB * spec.demand.gpu_memory_utilization - need.total + need.kv_cache
    if spec.demand.kv_cache_bytes is not None:
        cache_bytes = spec.demand.kv_cache_bytes
    layers = max(stage_layers(model.layers, shape.pipeline_parallel))
    length = max(1.0, workload.generation_length)
    per_block = sum(
        count * one.kept_numbers(shape.tensor_parallel) * one.attended(length) for one, count in model.attentions
    )
    state = sum(count * block.state for block, count in model.counts) / shape.tensor_parallel
    sequence = layers * (per_block * spec.demand.kv_bytes + state * STATE_BYTES) / model.layers
    return max(1.0, min(constants.MAX_NUM_SEQS, cache_bytes / max(1.0, sequence)))
