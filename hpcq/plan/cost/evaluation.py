"""Seconds that an evaluation takes on one place: start, loading, prompts, text. A roofline with the rates of rates.py.

Knows models, schemes, GPUs and how they are put together; must not know a manifest, a run or a clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpcq.catalog.gpus import GPU
from hpcq.catalog.kernels import Kernel
from hpcq.catalog.models import ModelShape
from hpcq.core.work import Scheme
from hpcq.plan.cost import constants
from hpcq.plan.cost.workload import Workload
from hpcq.plan.memory.gpu_memory import Demand, Need, stage_layers
from hpcq.plan.memory.offload import Offloaded
from hpcq.plan.memory.weights import BITS, GIB, weight_bytes
from hpcq.plan.units import Shape

_GIGA = 10**9
_TERA = 10**12
_FLOAT32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of a whole evaluation, or of a quantization.

    start: until weights are read, and after it until the first answer. load: reading them. work: all the rest, which
    shards divide.
    """

    start: float = 0.0
    load: float = 0.0
    work: float = 0.0

    @property
    def fixed(self) -> float:
        """What every shard takes, however little it answers."""
        return self.start + self.load

    def seconds(self, shards: int = 1) -> float:
        """Of one of so many shards."""
        return self.fixed + self.work / shards


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a unit computes on.

    gpu None: on `cores` CPU cores. read_gb_per_s: of a node from the file system, when all nodes of the unit read.
    """

    gpu: GPU | None
    shape: Shape
    cores: int = 1
    read_gb_per_s: float = constants.READ_GB_PER_S


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be evaluated, with what.

    dtype: what is computed in. batch: texts written together at most. need: of memory (None: on a CPU). offloaded:
    weights that are brought to where they are multiplied for each pass.
    """

    model: ModelShape
    scheme: Scheme
    backend: str
    dtype: str
    batch: int
    demand: Demand
    kernel: Kernel | None = None
    need: Need | None = None
    offloaded: Offloaded | None = None


def evaluation_cost(job: Job, load: Workload, machine: Machine) -> Cost:
    """What answering `load` takes. Every node reads all files, side by side."""
    prompts = load.scored * _token_s(job, machine, load.scored_length, with_logits=True)
    prompts += load.prompts * _token_s(job, machine, load.written_length, with_logits=False)
    passes = (load.scored + load.prompts) / constants.OFFLOADED_PASS_TOKENS["gpu" if machine.gpu else "cpu"]
    prompts += passes * _brought_s(job, machine)
    return Cost(
        start=constants.START_S[job.backend],
        load=load_s(weight_bytes(job.model, job.scheme), machine),
        work=prompts + _written_s(job, load, machine),
    )


def load_s(bytes_read: float, machine: Machine) -> float:
    """Seconds to read so many bytes on every node."""
    return bytes_read / (machine.read_gb_per_s * _GIGA)


def token_flops(model: ModelShape, length: float, *, with_logits: bool) -> float:
    """Operations for one token of a prompt of `length`: each weight once, and attention to half of the prompt."""
    weights = 2 * model.linear_parameters + (2 * model.hidden * model.vocabulary if with_logits else 0)
    return weights + 4 * model.layers * model.heads * model.head_dim * length / 2


def gpu_flops(gpu: GPU, dtype: str, kernel: Kernel | None = None) -> float:
    """Dense operations a second in the format that the kernel multiplies in."""
    multiplies = kernel.multiplies if kernel else None
    if multiplies is not None and multiplies in gpu.dense_tflops:
        return gpu.dense_tflops[multiplies] * _TERA
    half = gpu.dense_tflops.get("bf16", gpu.dense_tflops["fp16"]) * _TERA
    return half * (constants.FLOAT32_SHARE if dtype == "float32" else 1.0)


def cpu_flops(dtype: str, cores: int) -> float:
    """Operations a second of so many cores."""
    return constants.CPU_GFLOPS[dtype] * _GIGA * cores


def _token_s(job: Job, machine: Machine, length: float, *, with_logits: bool) -> float:
    """Seconds of one token of a prompt, where many are computed at once."""
    flops = token_flops(job.model, length, with_logits=with_logits)
    shape, gpu = machine.shape, machine.gpu
    if gpu is None:
        return flops / cpu_flops(job.dtype, machine.cores)
    share = constants.PREFILL_SHARE[job.backend]
    if _is_weight_only(job):
        share *= constants.WEIGHT_ONLY_SHARE
    if shape.pipeline_parallel > 1:
        share *= constants.PIPELINE_SHARE
    # Where layers are dealt to GPUs without a pipeline (accelerate), one GPU works at a time.
    at_once = shape.tensor_parallel * shape.pipeline_parallel
    return flops / (at_once * share * gpu_flops(gpu, job.dtype, job.kernel)) + (
        _all_reduces(job.model, shape) * _all_reduce_s(job, gpu, shape) / shape.pipeline_parallel
    )


def _brought_s(job: Job, machine: Machine) -> float:
    """Seconds for offloaded weights to reach where they are multiplied, once."""
    if job.offloaded is None:
        return 0.0
    seconds = job.offloaded.disk / (constants.DISK_READ_GB_PER_S * _GIGA)
    return seconds + (job.offloaded.host / (constants.HOST_LINK_GB_PER_S * _GIGA) if machine.gpu else 0.0)


def _is_weight_only(job: Job) -> bool:
    quantized = job.scheme.is_quantized and job.backend == "vllm"
    return quantized and job.kernel is not None and job.kernel.multiplies is None


def _all_reduces(model: ModelShape, shape: Shape) -> int:
    """After attention and after the feed-forward layer of each block, where matrices are cut."""
    return 2 * model.layers if shape.tensor_parallel > 1 else 0


def _all_reduce_s(job: Job, gpu: GPU, shape: Shape) -> float:
    """Of one token's hidden state: a ring sends it twice but for one part; links are counted both ways together."""
    parts = shape.tensor_parallel
    sent = 2 * (parts - 1) / parts * job.model.hidden * job.demand.compute_bytes
    return sent / (gpu.link_gb_per_s / 2 * constants.LINK_SHARE * _GIGA)


def _written_s(job: Job, load: Workload, machine: Machine) -> float:
    """Text is written token by token: each step reads the weights once, and the keys and values of all texts."""
    if not load.written:
        return 0.0
    batch = min(_batch(job, load, machine), max(1.0, load.texts))
    cache = batch * load.written_length * _kv_token_bytes(job)
    flops = batch * token_flops(job.model, 2 * load.written_length, with_logits=True)
    weights = _read_weights(job)
    gpu, shape = machine.gpu, machine.shape
    if gpu is None:
        step = (weights + cache) / (constants.CPU_READ_GB_PER_S * _GIGA) + flops / cpu_flops(job.dtype, machine.cores)
        return load.written / batch * (step + _brought_s(job, machine))
    share = constants.PREFILL_SHARE[job.backend] * gpu_flops(gpu, job.dtype, job.kernel)
    # Stages work side by side on parts of the batch, and each part reads its stage's weights again.
    weights_s = weights / shape.tensor_parallel / (gpu.bandwidth_gb_per_s * constants.READ_SHARE * _GIGA)
    at_once = shape.tensor_parallel * shape.pipeline_parallel
    cache_s = cache / at_once / (gpu.bandwidth_gb_per_s * constants.READ_SHARE * _GIGA)
    hop = next(seconds for link, seconds in constants.HOP_S.items() if gpu.link.startswith(link))
    talk_s = _all_reduces(job.model, shape) * (hop + batch / shape.pipeline_parallel * _all_reduce_s(job, gpu, shape))
    python_s = job.model.layers * constants.LAYER_S[job.backend]
    step = max(weights_s, flops / at_once / share) + cache_s + talk_s + python_s + _brought_s(job, machine)
    return load.written / batch * step


def _read_weights(job: Job) -> float:
    """Bytes of weights in the form that is multiplied: transformers decompresses a quantized checkpoint."""
    if job.backend == "vllm" and job.scheme.is_quantized:
        return weight_bytes(job.model, job.scheme)
    return job.model.parameters * (_FLOAT32_BYTES if job.dtype == "float32" else BITS["bf16"] // 8)


def _kv_token_bytes(job: Job) -> int:
    return 2 * job.model.layers * job.model.kv_heads * job.model.head_dim * job.demand.kv_bytes


def _batch(job: Job, load: Workload, machine: Machine) -> float:
    """Texts written at once: with vLLM as many as the rest of the memory has room for, else the manifest's number."""
    if job.backend != "vllm" or machine.gpu is None or job.need is None:
        return float(job.batch)
    shape = machine.shape
    room = machine.gpu.memory_gib * GIB * job.demand.share - job.need.total + job.need.kv_cache
    if job.demand.kv_cache_bytes is not None:
        room = job.demand.kv_cache_bytes
    model = job.model
    heads = max(1, -(-model.kv_heads // shape.tensor_parallel))
    token = 2 * heads * model.head_dim * max(stage_layers(model.layers, shape.pipeline_parallel)) * job.demand.kv_bytes
    return max(1.0, min(constants.SEQUENCES_AT_MOST, room / (token * max(1.0, load.written_length))))
