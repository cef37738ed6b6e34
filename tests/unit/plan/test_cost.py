"""Seconds by a roofline: they grow with what there is to do, shrink with faster machines, and have known magnitudes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcq.catalog.gpus import GPU, find_gpu, gpu_names
from hpcq.catalog.kernels import find_kernel
from hpcq.catalog.models import ModelShape, find_shape
from hpcq.catalog.schemes import find_scheme
from hpcq.catalog.tasks import find_suite
from hpcq.core.work import Calibration, Scheme, Task
from hpcq.plan.cost.evaluation import Cost, Job, Machine, evaluation_cost, gpu_flops
from hpcq.plan.cost.quantization import quantization_cost
from hpcq.plan.cost.workload import Workload, workload_of
from hpcq.plan.memory.gpu_memory import Demand, Split, need_of
from hpcq.plan.units import Shape

DAY_S = 86_400
BOTH_KINDS = Workload(
    scored=1e6, scored_length=500, prompts=1e5, written=1e4, written_length=500, texts=100, requests=4000
)


def gpu_of(name: str) -> GPU:
    """The catalog's row."""
    found = find_gpu(name)
    assert found
    return found


def model_of(size: str) -> ModelShape:
    """A Llama-3.1 of that size."""
    found = find_shape(f"meta-llama/Llama-3.1-{size}-Instruct")
    assert found
    return found


def scheme_of(name: str) -> Scheme:
    """The catalog's scheme."""
    found = find_scheme(name)
    assert found
    return found


def job(size: str, scheme: str, gpu: GPU, split: Split, backend: str = "vllm") -> Job:
    """An evaluation on so many of those GPUs."""
    model, known = model_of(size), scheme_of(scheme)
    return Job(
        model=model, scheme=known, backend=backend, dtype="bfloat16", batch=8, demand=Demand(),
        kernel=find_kernel(backend, known, gpu.compute_capability), need=need_of(model, known, split, Demand()),
    )  # fmt: skip


def cost_on(name: str, scheme: str = "bf16", load: Workload = BOTH_KINDS, size: str = "8B", tensor: int = 1) -> Cost:
    """What it takes on so many GPUs of a node."""
    gpu = gpu_of(name)
    shape = Shape(gpu_class=name, gpus_per_node=tensor, tensor_parallel=tensor)
    return evaluation_cost(job(size, scheme, gpu, Split(tensor=tensor)), load, Machine(gpu=gpu, shape=shape))


@given(st.floats(1, 1e9), st.floats(1, 1e9), st.floats(1, 1e8))
def test_more_tokens_take_longer(scored: float, prompts: float, written: float) -> None:
    """Of any kind."""
    load = replace(BOTH_KINDS, scored=scored, prompts=prompts, written=written)
    usual = cost_on("H100-80", load=load).work
    for name in ("scored", "prompts", "written"):
        more = replace(load, **{name: 2 * getattr(load, name)})
        assert cost_on("H100-80", load=more).work > usual


@given(st.sampled_from(sorted(gpu_names())), st.floats(1, 10), st.floats(1, 10), st.sampled_from([1, 2, 4]))
def test_a_faster_gpu_takes_no_longer(name: str, flops: float, bandwidth: float, tensor: int) -> None:
    """Whatever of it is faster."""
    slow = gpu_of(name)
    fast = replace(
        slow,
        dense_tflops={key: flops * value for key, value in slow.dense_tflops.items()},
        bandwidth_gb_per_s=slow.bandwidth_gb_per_s * bandwidth,
    )
    shape = Shape(gpu_class="c", gpus_per_node=tensor, tensor_parallel=tensor)
    work = job("8B", "bf16", slow, Split(tensor=tensor))
    slower, faster = (evaluation_cost(work, BOTH_KINDS, Machine(gpu=gpu, shape=shape)) for gpu in (slow, fast))
    assert faster.seconds() <= slower.seconds()


def test_weights_are_read_at_the_file_systems_rate() -> None:
    """405B in BF16 is 812 GB: 43 minutes would do for 894 GiB, and 10 GB/s make it 81 s on every node."""
    gpu = gpu_of("H100-80")
    shape = Shape(gpu_class="h100", nodes=2, gpus_per_node=8, tensor_parallel=8, pipeline_parallel=2)
    work = job("405B", "bf16", gpu, Split(tensor=8, stages=2))
    slow, fast = (
        evaluation_cost(work, BOTH_KINDS, machine)
        for machine in (Machine(gpu=gpu, shape=shape), Machine(gpu=gpu, shape=shape, read_gb_per_s=10))
    )
    assert slow.load == pytest.approx(812 / 0.37, rel=0.01)
    assert fast.load == pytest.approx(81.2, rel=0.01)


def test_one_choice_at_a_time_in_full_precision_takes_weeks() -> None:
    """The study's 405B, 'over 30 days': both leaderboards by transformers, nothing shared; within a factor of 5."""
    suites = [suite for name in ("openllm-v1", "openllm-v2") if (suite := find_suite(name))]
    tasks = [Task(name=name, num_fewshot=shots) for suite in suites for name, shots in suite.tasks]
    gpu = gpu_of("H100-80")
    shape = Shape(gpu_class="h100", gpus_per_node=8)
    load = workload_of(tasks, shares_prefixes=False)
    cost = evaluation_cost(job("405B", "bf16", gpu, Split(stages=8), "accelerate"), load, Machine(gpu=gpu, shape=shape))
    assert 30 / 5 * DAY_S < cost.seconds() < 30 * 5 * DAY_S
    shared = cost_on("H100-80", "fp8", workload_of(tasks, shares_prefixes=True), "405B", tensor=8)
    assert shared.seconds() < DAY_S / 4


def test_kernels_multiply_in_their_own_format() -> None:
    """FP8 doubles an H100 and not an A100, whose kernel multiplies in 16 bits; W4A16 is no faster than BF16."""
    for name, scheme, tflops in (
        ("H100-80", "fp8", 1979), ("A100-80", "fp8", 312), ("A100-80", "smoothquant-w8a8", 624),
        ("H100-80", "gptq-w4a16", 989),
    ):  # fmt: skip
        gpu = gpu_of(name)
        kernel = find_kernel("vllm", scheme_of(scheme), gpu.compute_capability)
        assert gpu_flops(gpu, "bfloat16", kernel) == tflops * 1e12
    assert cost_on("H100-80", "gptq-w4a16").work > cost_on("H100-80", "bf16").work


def test_tensor_parallelism_over_pcie_is_dear() -> None:
    """Four A6000 on PCIe take more GPU-seconds of work for 8B than one; on NVLink the loss is smaller."""
    lost = {}
    for name in ("A6000-48", "A100-80"):
        one, four = (cost_on(name, size="8B", tensor=tensor) for tensor in (1, 4))
        lost[name] = 4 * four.work / one.work
    assert 1 < lost["A100-80"] < lost["A6000-48"]


def test_gptq_on_a_cpu_takes_what_was_measured() -> None:
    """SmolLM2-135M in groups of 64, 16 sequences of 128 tokens on one core: 126 s, within a third."""
    model = find_shape("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert model
    calibration = Calibration(digest=None, samples=16, sequence_length=128)
    cost = quantization_cost(
        model, scheme_of("gptq-w4a16-g64"), calibration, Machine(gpu=None, shape=Shape(gpu_class="cpu"))
    )
    assert cost.work == pytest.approx(126, rel=0.34)


def test_tasks_without_figures_are_reckoned_as_the_others_are() -> None:
    """MuSR, of which nobody counted tokens, adds its requests at the mean of the others, and is named."""
    known = [Task(name="arc_challenge", num_fewshot=25)]
    alone, both = (
        workload_of(tasks, shares_prefixes=True) for tasks in (known, [*known, Task(name="leaderboard_musr")])
    )
    assert both.without == ("leaderboard_musr",)
    assert both.scored / both.requests == pytest.approx(alone.scored / alone.requests)
    assert both.scored > alone.scored
