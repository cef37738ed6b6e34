"""What one GPU must hold, against what is known of large models on real GPUs."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcq.catalog.gpus import find_gpu
from hpcq.catalog.models import ModelShape, find_shape, model_ids
from hpcq.catalog.schemes import find_scheme
from hpcq.core.work import Calibration, Scheme
from hpcq.plan.memory.gpu_memory import SHARE, Demand, Split, indivisible, large, need_of, stage_layers
from hpcq.plan.memory.quantization import quantization_need
from hpcq.plan.memory.weights import GIB, weight_bytes

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
LLAMA_70B = "meta-llama/Llama-3.1-70B-Instruct"
LLAMA_405B = "meta-llama/Llama-3.1-405B-Instruct"
VICUNA_33B = "lmsys/vicuna-33b-v1.3"
SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEMAND = Demand(sequences=8, length=4096)


def shape(name: str) -> ModelShape:
    """A shape of the catalog's."""
    found = find_shape(name)
    assert found
    return found


def scheme(name: str) -> Scheme:
    """A scheme of the catalog's."""
    found = find_scheme(name)
    assert found
    return found


def fits(model: str, scheme_name: str, gpu_name: str, split: Split, demand: Demand = DEMAND) -> bool:
    """Whether vLLM has room for it."""
    gpu = find_gpu(gpu_name)
    assert gpu
    need = need_of(shape(model), scheme(scheme_name), split, demand, is_large_gpu=large(gpu.memory_gib, gpu.name))
    return need.total <= gpu.memory_gib * GIB * demand.share


@pytest.mark.parametrize(
    ("model", "scheme_name", "gpu", "split", "expected"),
    [
        (LLAMA_405B, "bf16", "H100-80", Split(tensor=8), False),
        (LLAMA_405B, "bf16", "H100-80", Split(tensor=8, stages=2), True),
        (LLAMA_405B, "fp8", "H100-80", Split(tensor=4), False),
        (LLAMA_405B, "fp8", "H100-80", Split(tensor=8), True),
        (LLAMA_405B, "gptq-w4a16", "A100-80", Split(tensor=4), True),
        (LLAMA_405B, "gptq-w4a16", "A6000-48", Split(tensor=4), False),
        (LLAMA_70B, "bf16", "A6000-48", Split(tensor=4), True),
        (LLAMA_70B, "bf16", "A100-80", Split(tensor=4), True),
        (LLAMA_70B, "bf16", "H100-80", Split(), False),
    ],
)
def test_large_models_fit_where_they_are_known_to(
    model: str, scheme_name: str, gpu: str, split: Split, *, expected: bool
) -> None:
    """405B: 16 H100 in BF16, 8 in FP8, 4 A100 but not 4 A6000 in W4A16; 70B in BF16: 4 A6000, not 1 H100."""
    assert fits(model, scheme_name, gpu, split) == expected


@pytest.mark.parametrize(("gpus", "weights"), [(1, 14.96), (2, 7.48)])
def test_weights_are_those_that_vllm_reports(gpus: int, weights: float) -> None:
    """Llama-3-8B on one H100 and on two (vLLM's pull request 10511); what else it reports is not more than planned."""
    need = need_of(shape(LLAMA_8B), scheme("bf16"), Split(tensor=gpus), DEMAND)
    assert need.weights / GIB == pytest.approx(weights, abs=0.01)
    assert need.activations >= 1.26 * GIB
    assert need.engine >= {1: 1.79, 2: 3.58}[gpus] * GIB


@pytest.mark.parametrize(
    ("layers", "stages", "expected"),
    [
        (126, 2, [63, 63]),
        (126, 4, [31, 32, 32, 31]),
        (30, 4, [7, 8, 8, 7]),
        (30, 2, [15, 15]),
        (31, 2, [16, 15]),
        (5, 3, [2, 2, 1]),
    ],
)
def test_layers_are_dealt_as_vllm_deals_them(layers: int, stages: int, expected: list[int]) -> None:
    """What is left over goes to the middle stages, for the first and the last have the embeddings and the head."""
    assert stage_layers(layers, stages) == expected


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
            "groups of 128 do not divide 2752, what 4 GPUs have of mlp.down_proj",
        ),
        ("meta-llama/Llama-2-7b-hf", "gptq-w4a16-g64", 4, None),
        ("meta-llama/Llama-2-7b-hf", "gptq-w8a16", 4, None),
    ],
)
def test_what_vllm_cannot_divide_is_said(model: str, scheme_name: str, gpus: int, reason: str | None) -> None:
    """Heads, key-value heads, widths, vocabulary and groups: the first that does not come out even."""
    assert indivisible(shape(model), scheme(scheme_name), Split(tensor=gpus)) == reason


def test_odd_heads_and_vocabularies_are_told_too() -> None:
    """Three key-value heads are neither divided among four nor repeated, and 49152 words are no multiple of five."""
    odd = dataclasses.replace(shape(SMOLLM), heads=20, kv_heads=3, intermediate=1600)
    assert indivisible(odd, scheme("bf16"), Split(tensor=4)) == (
        "its 3 key-value heads can neither be divided among 4 GPUs nor repeated evenly"
    )
    even = dataclasses.replace(odd, kv_heads=5)
    assert indivisible(even, scheme("bf16"), Split(tensor=5)) == ("5 GPUs do not divide its vocabulary (49152, padded)")
    assert indivisible(odd, scheme("bf16"), Split(stages=31)) == "31 stages are more than its 30 layers"


@given(
    st.sampled_from(model_ids()),
    st.sampled_from(["bf16", "fp8", "gptq-w8a16", "smoothquant-w8a8"]),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 4),
)
def test_no_weight_is_lost_in_a_split(model: str, scheme_name: str, tensor: int, stages: int) -> None:
    """All GPUs together hold the checkpoint at least, and one of them alone holds its share."""
    split = Split(tensor=tensor, stages=stages)
    whole = weight_bytes(shape(model), scheme(scheme_name))
    demand = dataclasses.replace(DEMAND, kv_cache_bytes=0)  # so that the fullest GPU is the one with most weights
    need = need_of(shape(model), scheme(scheme_name), split, demand)
    assert need.weights * split.gpus >= whole
    alone = need_of(shape(model), scheme(scheme_name), Split(), demand)
    # A vocabulary that is no multiple of 64 is padded.
    assert alone.weights == pytest.approx(whole, rel=1e-4)
    assert need.weights <= alone.weights


def test_repeated_key_value_heads_cost_what_they_cost() -> None:
    """From 8 GPUs on, each has one of Llama-3.1-70B's 8 key-value heads: its KV cache shrinks no further."""
    caches = [need_of(shape(LLAMA_70B), scheme("bf16"), Split(tensor=gpus), DEMAND).kv_cache for gpus in (4, 8, 16)]
    assert caches == [80 * 2 * 2 * 128 * 2 * 8 * 4096, caches[0] // 2, caches[0] // 2]


def test_an_fp8_cache_is_half_and_a_stated_one_is_as_stated() -> None:
    """The KV cache follows sequences, length and the bytes of a number, unless its size is given."""
    plain = need_of(shape(LLAMA_8B), scheme("bf16"), Split(), DEMAND)
    fp8 = need_of(shape(LLAMA_8B), scheme("bf16"), Split(), dataclasses.replace(DEMAND, kv_bytes=1))
    given_size = need_of(shape(LLAMA_8B), scheme("bf16"), Split(), dataclasses.replace(DEMAND, kv_cache_bytes=7))
    assert plain.kv_cache == 4 * GIB == 2 * fp8.kv_cache
    assert given_size.kv_cache == 7


def test_tied_embeddings_are_on_the_first_stage_and_on_the_last() -> None:
    """One copy where there is one stage, two where there are two: both stages of two weigh the same, but for a norm."""
    embeddings = 49152 * 576 * 2
    one = need_of(shape(SMOLLM), scheme("bf16"), Split(), DEMAND).weights
    two = need_of(shape(SMOLLM), scheme("bf16"), Split(stages=2), DEMAND).weights
    assert 2 * two == one + embeddings + 576 * 2


def test_float32_doubles_what_is_not_quantized() -> None:
    """A base checkpoint that is computed in float32 is held in it."""
    demand = dataclasses.replace(DEMAND, compute_bytes=4)
    halves = [need_of(shape(LLAMA_8B), scheme("bf16"), Split(), one).weights for one in (DEMAND, demand)]
    assert halves[1] == 2 * halves[0]


def test_gptq_of_the_largest_model_needs_a_large_gpu_and_a_large_node() -> None:
    """405B: 756 GiB of weights in the node's memory; Hessians of one block, down_proj's alone 10.6 GiB, on the GPU."""
    calibration = Calibration(digest=None, samples=128, sequence_length=2048)
    need = quantization_need(shape(LLAMA_405B), scheme("gptq-w4a16"), calibration, on_gpu=True)
    assert 756 < need.host / GIB < 850
    assert 45 < need.gpu / GIB < 80
    dynamic = quantization_need(shape(LLAMA_405B), scheme("fp8-dynamic"), None, on_gpu=True)
    assert dynamic.gpu < 10 * GIB


def test_what_was_measured_of_quantizing_on_a_cpu_is_planned_for() -> None:
    """SmolLM2-135M by GPTQ, 16 sequences of 128 tokens, took 1.4 GB at most (llmcompressor 0.14, float32)."""
    calibration = Calibration(digest=None, samples=16, sequence_length=128)
    need = quantization_need(shape(SMOLLM), scheme("gptq-w4a16-g64"), calibration, on_gpu=False)
    assert need.gpu == 0
    assert 1.4e9 < need.host < 1.4 * 1.4e9


def test_the_share_is_vllms_own() -> None:
    """Nothing is planned into the memory that vLLM leaves alone."""
    assert Demand().share == SHARE < 1
