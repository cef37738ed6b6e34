"""Roofline estimates: they grow with the work, shrink with faster hardware, and have known magnitudes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcq.catalog.gpus import GPU, find_gpu, gpu_names
from hpcq.catalog.kernels import find_kernel
from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.models import find_model_shape
from hpcq.catalog.schemes import find_scheme
from hpcq.catalog.tasks import find_suite
from hpcq.core.work_records import Calibration, Scheme, Task
from hpcq.plan.cost.evaluation import Cost, EvaluationSpec, Hardware, evaluation_cost, gpu_flops
from hpcq.plan.cost.quantization import quantization_cost
from hpcq.plan.cost.tokens import Workload, estimate_workload
from hpcq.plan.memory.gpu_memory import MemoryDemand, Parallelism, gpu_memory
from hpcq.plan.units import Shape

DAY_S = 86_400
BOTH_KINDS = Workload(
    scored_tokens=1e6,
    scored_length=500,
    prompt_tokens=1e5,
    generated_tokens=1e4,
    generation_length=500,
    generations=100,
    requests=4000,
)


def gpu_of(name: str) -> GPU:
    """Return a GPU type in the catalog."""
    found = find_gpu(name)
    assert found
    return found


def model_of(size: str) -> ModelShape:
    """Return the shape of a Llama-3.1."""
    found = find_model_shape(f"meta-llama/Llama-3.1-{size}-Instruct")
    assert found
    return found


def scheme_of(name: str) -> Scheme:
    """Return a scheme in the catalog."""
    found = find_scheme(name)
    assert found
    return found


def spec_of(size: str, scheme: str, gpu: GPU, parallelism: Parallelism, backend: str = "vllm") -> EvaluationSpec:
    """Return an evaluation with this parallelism."""
    model, known = model_of(size), scheme_of(scheme)
    return EvaluationSpec(
        model=model, scheme=known, backend=backend, dtype="bfloat16", batch=8, demand=MemoryDemand(),
        kernel=find_kernel(backend, known, gpu.compute_capability),
        gpu_memory=gpu_memory(model, known, parallelism, MemoryDemand()),
    )  # fmt: skip


def cost_on(name: str, scheme: str = "bf16", load: Workload = BOTH_KINDS, size: str = "8B", tensor: int = 1) -> Cost:
    """Return the cost on `tensor` GPUs of one node."""
    gpu = gpu_of(name)
    shape = Shape(gpu_class=name, gpus_per_node=tensor, tensor_parallel=tensor)
    return evaluation_cost(spec_of(size, scheme, gpu, Parallelism(tensor=tensor)), load, Hardware(gpu=gpu, shape=shape))


@given(st.floats(1, 1e9), st.floats(1, 1e9), st.floats(1, 1e8))
def test_more_tokens_take_longer(scored: float, prompts: float, generated: float) -> None:
    """Every kind of token adds time."""
    load = replace(BOTH_KINDS, scored_tokens=scored, prompt_tokens=prompts, generated_tokens=generated)
    reference = cost_on("H100-80", load=load).work_s
    for name in ("scored_tokens", "prompt_tokens", "generated_tokens"):
        more = replace(load, **{name: 2 * getattr(load, name)})
        assert cost_on("H100-80", load=more).work_s > reference


@given(st.sampled_from(sorted(gpu_names())), st.floats(1, 10), st.floats(1, 10), st.sampled_from([1, 2, 4]))
def test_a_faster_gpu_takes_no_longer(name: str, flops: float, bandwidth: float, tensor: int) -> None:
    """Neither more FLOP/s nor more bandwidth increases the time."""
    slow = gpu_of(name)
    fast = replace(
        slow,
        dense_tflops={key: flops * value for key, value in slow.dense_tflops.items()},
        bandwidth_gb_per_s=slow.bandwidth_gb_per_s * bandwidth,
    )
    shape = Shape(gpu_class="c", gpus_per_node=tensor, tensor_parallel=tensor)
    spec = spec_of("8B", "bf16", slow, Parallelism(tensor=tensor))
    slower, faster = (evaluation_cost(spec, BOTH_KINDS, Hardware(gpu=gpu, shape=shape)) for gpu in (slow, fast))
    assert faster.seconds() <= slower.seconds()


def test_weights_are_read_at_the_file_systems_rate() -> None:
    """405B in BF16 has 812 GB: with 10 GB/s each node reads it in 81 s."""
    gpu = gpu_of("H100-80")
    shape = Shape(gpu_class="h100", nodes=2, gpus_per_node=8, tensor_parallel=8, pipeline_parallel=2)
    spec = spec_of("405B", "bf16", gpu, Parallelism(tensor=8, pipeline=2))
    slow, fast = (
        evaluation_cost(spec, BOTH_KINDS, machine)
        for machine in (Hardware(gpu=gpu, shape=shape), Hardware(gpu=gpu, shape=shape, read_gb_per_s=10))
    )
    assert slow.load_s == pytest.approx(812 / 0.37, rel=0.01)
    assert fast.load_s == pytest.approx(81.2, rel=0.01)


def test_one_choice_at_a_time_in_full_precision_takes_weeks() -> None:
    """The study took 'over 30 days' for 405B, both leaderboards, transformers, no sharing; within a factor of 5."""
    suites = [suite for name in ("openllm-v1", "openllm-v2") if (suite := find_suite(name))]
    tasks = [Task(name=name, num_fewshot=shots) for suite in suites for name, shots in suite.tasks]
    gpu = gpu_of("H100-80")
    shape = Shape(gpu_class="h100", gpus_per_node=8)
    load = estimate_workload(tasks, shares_prefixes=False)
    cost = evaluation_cost(
        spec_of("405B", "bf16", gpu, Parallelism(pipeline=8), "accelerate"), load, Hardware(gpu=gpu, shape=shape)
    )
    assert 30 / 5 * DAY_S < cost.seconds() < 30 * 5 * DAY_S
    shared = cost_on("H100-80", "fp8", estimate_workload(tasks, shares_prefixes=True), "405B", tensor=8)
    assert shared.seconds() < DAY_S / 4


def test_flops_are_those_of_the_kernels_format() -> None:
    """FP8 doubles the FLOP/s of an H100, not of an A100 (16-bit kernel); W4A16 is not faster than BF16."""
    for name, scheme, tflops in (
        ("H100-80", "fp8", 1979), ("A100-80", "fp8", 312), ("A100-80", "smoothquant-w8a8", 624),
        ("H100-80", "gptq-w4a16", 989),
    ):  # fmt: skip
        gpu = gpu_of(name)
        kernel = find_kernel("vllm", scheme_of(scheme), gpu.compute_capability)
        assert gpu_flops(gpu, "bfloat16", kernel) == tflops * 1e12
    assert cost_on("H100-80", "gptq-w4a16").work_s > cost_on("H100-80", "bf16").work_s


def test_tensor_parallelism_over_pcie_is_expensive() -> None:
    """For 8B, four A6000 on PCIe take more GPU-seconds than one; with NVLink the loss is smaller."""
    lost = {}
    for name in ("A6000-48", "A100-80"):
        one, four = (cost_on(name, size="8B", tensor=tensor) for tensor in (1, 4))
        lost[name] = 4 * four.work_s / one.work_s
    assert 1 < lost["A100-80"] < lost["A6000-48"]


def test_gptq_on_a_cpu_agrees_with_the_measurement() -> None:
    """SmolLM2-135M in groups of 64, 16 sequences of 128 tokens on one core: 126 s, within a third."""
    model = find_model_shape("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert model
    calibration = Calibration(digest=None, samples=16, sequence_length=128)
    cost = quantization_cost(
        model, scheme_of("gptq-w4a16-g64"), calibration, Hardware(gpu=None, shape=Shape(gpu_class="cpu"))
    )
    assert cost.work_s == pytest.approx(126, rel=0.34)


def test_tasks_without_token_averages_are_estimated_at_the_mean_of_the_others() -> None:
    """MuSR has no token averages: its requests count at the mean of the others, and the task is named."""
    known = [Task(name="arc_challenge", num_fewshot=25)]
    alone, both = (
        estimate_workload(tasks, shares_prefixes=True) for tasks in (known, [*known, Task(name="leaderboard_musr")])
    )
    assert both.unknown_tasks == ("leaderboard_musr",)
    assert both.scored_tokens / both.requests == pytest.approx(alone.scored_tokens / alone.requests)
    assert both.scored_tokens > alone.scored_tokens
