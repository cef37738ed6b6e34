"""Estimated memory per GPU, compared with what is known of large models on real GPUs."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcq.catalog.gpus import find_gpu
from hpcq.catalog.hf_config import parse_config
from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.models import find_model_shape, model_ids
from hpcq.catalog.schemes import find_scheme
from hpcq.core.work_records import Calibration, Scheme
from hpcq.plan.memory.gpu_memory import (
    GPU_MEMORY_UTILIZATION,
    MemoryDemand,
    Parallelism,
    gpu_memory,
    has_large_batch,
    indivisible_reason,
)
from hpcq.plan.memory.quantization import quantization_memory
from hpcq.plan.memory.weights import GIB, base_bytes, checkpoint_bytes, weight_bytes

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
LLAMA_70B = "meta-llama/Llama-3.1-70B-Instruct"
LLAMA_405B = "meta-llama/Llama-3.1-405B-Instruct"
VICUNA_33B = "lmsys/vicuna-33b-v1.3"
SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEMAND = MemoryDemand(sequences=8, length=4096)


def shape(name: str) -> ModelShape:
    """Return a model shape in the catalog."""
    found = find_model_shape(name)
    assert found
    return found


def scheme(name: str) -> Scheme:
    """Return a scheme in the catalog."""
    found = find_scheme(name)
    assert found
    return found


def fits(model: str, scheme_name: str, gpu_name: str, parallelism: Parallelism, demand: MemoryDemand = DEMAND) -> bool:
    """Return whether it fits with vLLM."""
    gpu = find_gpu(gpu_name)
    assert gpu
    need = gpu_memory(
        shape(model),
        scheme(scheme_name),
        parallelism,
        demand,
        has_large_batch=has_large_batch(gpu.memory_gib, gpu.name),
    )
    return need.total <= gpu.memory_gib * GIB * demand.gpu_memory_utilization


@pytest.mark.parametrize(
    ("model", "scheme_name", "gpu", "parallelism", "expected"),
    [
        (LLAMA_405B, "bf16", "H100-80", Parallelism(tensor=8), False),
        (LLAMA_405B, "bf16", "H100-80", Parallelism(tensor=8, pipeline=2), True),
        (LLAMA_405B, "fp8", "H100-80", Parallelism(tensor=4), False),
        (LLAMA_405B, "fp8", "H100-80", Parallelism(tensor=8), True),
        (LLAMA_405B, "gptq-w4a16", "A100-80", Parallelism(tensor=4), True),
        (LLAMA_405B, "gptq-w4a16", "A6000-48", Parallelism(tensor=4), False),
        (LLAMA_70B, "bf16", "A6000-48", Parallelism(tensor=4), True),
        (LLAMA_70B, "bf16", "A100-80", Parallelism(tensor=4), True),
        (LLAMA_70B, "bf16", "H100-80", Parallelism(), False),
    ],
)
def test_large_models_fit_where_they_are_known_to(
    model: str, scheme_name: str, gpu: str, parallelism: Parallelism, *, expected: bool
) -> None:
    """405B: 16 H100 in BF16, 8 in FP8, 4 A100 but not 4 A6000 in W4A16; 70B in BF16: 4 A6000, not 1 H100."""
    assert fits(model, scheme_name, gpu, parallelism) == expected


@pytest.mark.parametrize(("gpus", "weights"), [(1, 14.96), (2, 7.48)])
def test_weights_equal_those_that_vllm_reports(gpus: int, weights: float) -> None:
    """Llama-3-8B on one and on two H100 (vLLM, pull request 10511); other parts are at most the estimate."""
    need = gpu_memory(shape(LLAMA_8B), scheme("bf16"), Parallelism(tensor=gpus), DEMAND)
    assert need.weights / GIB == pytest.approx(weights, abs=0.01)
    assert need.activations >= 1.26 * GIB
    assert need.engine >= {1: 1.79, 2: 3.58}[gpus] * GIB


@pytest.mark.parametrize(
    ("model", "scheme_name", "gpus", "reason"),
    [
        (SMOLLM, "bf16", 2, "2 GPUs do not divide its attention heads (9)"),
        (SMOLLM, "bf16", 3, None),
        (VICUNA_33B, "bf16", 8, "8 GPUs do not divide its attention heads (52)"),
        ("google/gemma-2b", "bf16", 8, None),  # its one key-value head is on all of them
        (LLAMA_405B, "bf16", 16, None),
        ("meta-llama/Llama-2-13b-hf", "bf16", 5, "5 GPUs do not divide its feed-forward width (13824)"),
        ("meta-llama/Llama-2-7b-hf", "bf16", 4, None),
        (
            "meta-llama/Llama-2-7b-hf",
            "gptq-w4a16",
            4,
            "groups of 128 do not divide 2752, the input width of mlp.down_proj on each of 4 GPUs",
        ),
        ("meta-llama/Llama-2-7b-hf", "gptq-w4a16-g64", 4, None),
        ("meta-llama/Llama-2-7b-hf", "gptq-w8a16", 4, None),
    ],
)
def test_the_reason_is_given_if_vllm_cannot_divide_a_model(
    model: str, scheme_name: str, gpus: int, reason: str | None
) -> None:
    """The first of heads, key-value heads, widths, vocabulary and groups that is not divisible."""
    assert indivisible_reason(shape(model), scheme(scheme_name), Parallelism(tensor=gpus)) == reason


def test_indivisible_key_value_heads_and_vocabularies_are_reported() -> None:
    """Three key-value heads are not divisible by four GPUs, nor 49152 tokens by five."""
    config = {
        "model_type": "llama",
        "hidden_size": 640,
        "intermediate_size": 1600,
        "num_hidden_layers": 30,
        "num_attention_heads": 20,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    }
    odd = parse_config(config)
    assert indivisible_reason(odd, scheme("bf16"), Parallelism(tensor=4)) == (
        "its 3 key-value heads can neither be divided among 4 GPUs nor repeated evenly"
    )
    even = parse_config(config | {"num_key_value_heads": 5})
    assert indivisible_reason(even, scheme("bf16"), Parallelism(tensor=5)) == (
        "5 GPUs do not divide its vocabulary (49152, padded)"
    )
    assert (
        indivisible_reason(odd, scheme("bf16"), Parallelism(pipeline=31))
        == "31 pipeline stages are more than its 30 layers"
    )


@given(
    st.sampled_from(model_ids()),
    st.sampled_from(["bf16", "fp8", "gptq-w8a16", "smoothquant-w8a8"]),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 4),
)
def test_no_weight_is_lost_by_parallelism(model: str, scheme_name: str, tensor: int, stages: int) -> None:
    """All GPUs together hold at least the checkpoint, and a single GPU holds exactly it."""
    parallelism = Parallelism(tensor=tensor, pipeline=stages)
    whole = weight_bytes(shape(model), scheme(scheme_name))
    demand = dataclasses.replace(DEMAND, kv_cache_bytes=0)  # the fullest GPU is then the one with most weights
    need = gpu_memory(shape(model), scheme(scheme_name), parallelism, demand)
    assert need.weights * parallelism.gpus >= whole
    alone = gpu_memory(shape(model), scheme(scheme_name), Parallelism(), demand)
    # vLLM pads a vocabulary to a multiple of 64.
    assert alone.weights == pytest.approx(whole, rel=1e-4)
    assert need.weights <= alone.weights


def test_repeated_key_value_heads_do_not_shrink_the_kv_cache() -> None:
    """With 8 GPUs each has one of Llama-3.1-70B's 8 key-value heads; more GPUs do not reduce the KV cache."""
    caches = [
        gpu_memory(shape(LLAMA_70B), scheme("bf16"), Parallelism(tensor=gpus), DEMAND).kv_cache for gpus in (4, 8, 16)
    ]
    assert caches == [80 * 2 * 2 * 128 * 2 * 8 * 4096, caches[0] // 2, caches[0] // 2]


def test_an_fp8_kv_cache_is_half_and_a_given_size_is_used() -> None:
    """The KV cache follows from sequences, length and bytes per number, unless its size is given."""
    plain = gpu_memory(shape(LLAMA_8B), scheme("bf16"), Parallelism(), DEMAND)
    fp8 = gpu_memory(shape(LLAMA_8B), scheme("bf16"), Parallelism(), dataclasses.replace(DEMAND, kv_bytes=1))
    given_size = gpu_memory(
        shape(LLAMA_8B), scheme("bf16"), Parallelism(), dataclasses.replace(DEMAND, kv_cache_bytes=7)
    )
    assert plain.kv_cache == 4 * GIB == 2 * fp8.kv_cache
    assert given_size.kv_cache == 7


def test_tied_embeddings_are_on_the_first_stage_and_on_the_last() -> None:
    """One stage has one copy, two stages have two; both of these have equal weights, except for one norm."""
    embeddings = 49152 * 576 * 2
    one = gpu_memory(shape(SMOLLM), scheme("bf16"), Parallelism(), DEMAND).weights
    two = gpu_memory(shape(SMOLLM), scheme("bf16"), Parallelism(pipeline=2), DEMAND).weights
    assert 2 * two == one + embeddings + 576 * 2


def test_float32_doubles_what_is_not_quantized() -> None:
    """The weights of a base checkpoint have the type of the computation."""
    demand = dataclasses.replace(DEMAND, compute_bytes=4)
    halves = [gpu_memory(shape(LLAMA_8B), scheme("bf16"), Parallelism(), one).weights for one in (DEMAND, demand)]
    assert halves[1] == 2 * halves[0]


def test_gptq_of_the_largest_model_needs_a_large_gpu_and_a_large_node() -> None:
    """405B: 756 GiB of weights in host memory; on the GPU the Hessians of a block (down_proj: 10.6 GiB)."""
    calibration = Calibration(digest=None, samples=128, sequence_length=2048)
    need = quantization_memory(shape(LLAMA_405B), scheme("gptq-w4a16"), calibration, on_gpu=True)
    assert 756 < need.host_bytes / GIB < 850
    assert 45 < need.gpu_bytes / GIB < 80
    dynamic = quantization_memory(shape(LLAMA_405B), scheme("fp8-dynamic"), None, on_gpu=True)
    assert dynamic.gpu_bytes < 10 * GIB


def test_a_base_in_float32_needs_twice_the_memory() -> None:
    """On a GPU a base is quantized in its own type: twice the host memory, and twice the bytes on disk.

    Observed: a base in float32 was planned at half its bytes.
    """
    half = shape(LLAMA_8B)
    full = dataclasses.replace(half, stored_dtype="float32")
    needs = [quantization_memory(one, scheme("fp8-dynamic"), None, on_gpu=True).host_bytes for one in (half, full)]
    assert needs[1] - GIB == pytest.approx(2 * (needs[0] - GIB))
    assert base_bytes(full) == 2 * base_bytes(half) == 4 * half.parameters
    assert checkpoint_bytes(full, scheme("bf16")) == base_bytes(full)
    assert checkpoint_bytes(full, scheme("fp8-dynamic")) > weight_bytes(full, scheme("fp8-dynamic"))


def test_quantizing_on_a_cpu_needs_at_least_the_measured_memory() -> None:
    """GPTQ of SmolLM2-135M, 16 sequences of 128 tokens: peak of 1.4 GB (llmcompressor 0.14, float32)."""
    calibration = Calibration(digest=None, samples=16, sequence_length=128)
    need = quantization_memory(shape(SMOLLM), scheme("gptq-w4a16-g64"), calibration, on_gpu=False)
    assert need.gpu_bytes == 0
    assert 1.4e9 < need.host_bytes < 1.4 * 1.4e9


def test_the_memory_utilization_is_vllms_default() -> None:
    """Memory that vLLM does not use is not planned for."""
    assert MemoryDemand().gpu_memory_utilization == GPU_MEMORY_UTILIZATION < 1
