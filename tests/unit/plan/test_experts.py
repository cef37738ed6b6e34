"""Placement and memory of mixtures of experts, latent and windowed KV caches, and state-space models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hpcq.catalog.hf_config import parse_config
from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.models import find_model_shape
from hpcq.catalog.schemes import find_scheme, group_size_problem, quantized_linears
from hpcq.core.work_records import EvaluateWork, Scheme
from hpcq.manifest import load, resolve
from hpcq.manifest.profiles import load_profile
from hpcq.plan.cost.evaluation import token_flops
from hpcq.plan.memory.gpu_memory import MemoryDemand, Parallelism, gpu_memory, has_whole_experts, indivisible_reason
from hpcq.plan.memory.weights import GIB, weight_bytes
from hpcq.plan.placement.candidates import place_evaluation
from hpcq.plan.placement.requirements import EvaluationRequirements
from hpcq.plan.plan_json import plan_document
from hpcq.plan.planner import make_plan

PROFILES = Path(__file__).resolve().parents[3] / "manifests" / "clusters"
QWEN = "Qwen/Qwen3-235B-A22B"
DEEPSEEK = "deepseek-ai/DeepSeek-V3"
MIXTRAL = "mistralai/Mixtral-8x22B-Instruct-v0.1"
MAVERICK = "meta-llama/Llama-4-Maverick-17B-128E-Instruct"
MAMBA = {"model_type": "mamba2", "num_heads": 128, "head_dim": 64, "state_size": 128, "n_groups": 8}


def shape(name: str) -> ModelShape:
    """Return the shape of a model in the catalog."""
    found = find_model_shape(name)
    assert found
    return found


def scheme(name: str) -> Scheme:
    """Return a scheme in the catalog."""
    found = find_scheme(name)
    assert found
    return found


@pytest.mark.parametrize(
    ("profile", "model", "scheme_name", "layout", "total", "weights"),
    [
        ("h100", QWEN, "bf16", (1, 8, True), 63.0, 54.91),
        ("h100", QWEN, "fp8", (1, 4, True), 63.3, 55.11),
        ("h100", QWEN, "gptq-w4a16", (1, 2, False), 66.6, 57.39),
        ("h100", DEEPSEEK, "bf16", (3, 8, True), 66.0, 56.85),
        ("h100", DEEPSEEK, "fp8", (2, 8, True), 50.4, 40.87),
        ("h100", DEEPSEEK, "gptq-w4a16", (1, 8, True), 51.8, 41.18),
        ("h200", QWEN, "bf16", (1, 4, True), 117.7, 109.54),
        ("h200", QWEN, "fp8", (1, 2, False), 119.3, 110.12),
        ("h200", QWEN, "gptq-w4a16", (1, 1, False), 125.8, 114.69),
        ("h200", DEEPSEEK, "bf16", (2, 8, True), 90.9, 81.42),
        ("h200", DEEPSEEK, "fp8", (1, 8, True), 89.9, 79.27),
        ("h200", DEEPSEEK, "gptq-w4a16", (1, 4, False), 91.5, 81.72),
        ("h200", MAVERICK, "bf16", (1, 8, False), 101.0, 93.32),
    ],
)
def test_large_mixtures_are_placed_on_the_shipped_profiles(
    profile: str, model: str, scheme_name: str, layout: tuple[int, int, bool], total: float, weights: float
) -> None:
    """235B and 671B models with the fewest GPUs: nodes, GPUs per node, whole experts, and GiB of the fullest GPU."""
    wanted = EvaluationRequirements(
        model=shape(model), scheme=scheme(scheme_name), backend="vllm", demand=MemoryDemand()
    )
    placed = place_evaluation(load_profile(f"clusters/{profile}.toml", PROFILES.parent), wanted)
    assert (placed.shape.nodes, placed.shape.gpus_per_node, placed.shape.expert_parallel) == layout
    assert placed.gpu_memory
    assert placed.gpu_memory.total / GIB == pytest.approx(total, abs=0.05)
    assert placed.gpu_memory.weights / GIB == pytest.approx(weights, abs=0.005)


@pytest.mark.parametrize("scheme_name", ["bf16", "fp8", "gptq-w4a16"])
@pytest.mark.parametrize("is_divided", [False, True])
def test_all_gpus_together_have_every_expert_once(scheme_name: str, *, is_divided: bool) -> None:
    """Whole experts or parts of all: eight GPUs have each once; only key-value heads and routers are repeated."""
    parallelism = Parallelism(tensor=8, divides_experts=is_divided)
    need = gpu_memory(shape(QWEN), scheme(scheme_name), parallelism, MemoryDemand(kv_cache_bytes=0))
    assert 1.0 <= 8 * need.weights / weight_bytes(shape(QWEN), scheme(scheme_name)) < 1.02


def test_an_uneven_number_of_experts_is_rounded_up() -> None:
    """Sixteen experts on three GPUs: the fullest has six (vLLM's determine_expert_map)."""
    config = {"model_type": "mixtral", "num_local_experts": 16, "num_attention_heads": 24, "num_key_value_heads": 3}
    model = parse_config(config | {"hidden_size": 3072, "vocab_size": 6144, "intermediate_size": 3072})
    experts = next(block.experts for block in model.kinds if block.experts)
    one = gpu_memory(model, scheme("bf16"), Parallelism(tensor=3, divides_experts=True), MemoryDemand()).weights
    even = replace(model, kinds=(replace(model.kinds[0], experts=replace(experts, count=18)),))
    assert one == gpu_memory(even, scheme("bf16"), Parallelism(tensor=3, divides_experts=True), MemoryDemand()).weights


@pytest.mark.parametrize(
    ("model", "scheme_name", "tensor", "expected"),
    [
        (MIXTRAL, "bf16", 8, False),  # 16384 / 8 = 2048 columns per GPU
        (QWEN, "bf16", 2, False),
        (QWEN, "bf16", 4, True),  # 384
        (DEEPSEEK, "bf16", 4, False),  # 512
        (DEEPSEEK, "bf16", 8, True),
        ("meta-llama/Llama-3.1-70B", "bf16", 8, False),
    ],
)
def test_narrow_experts_stay_whole(model: str, scheme_name: str, tensor: int, *, expected: bool) -> None:
    """GPUs have whole experts if their parts would have fewer than 512 columns; the manifest may decide otherwise."""
    found = shape(model)
    assert has_whole_experts(found, scheme(scheme_name), tensor) is expected
    assert has_whole_experts(found, scheme(scheme_name), tensor, requested=True) is bool(found.experts)
    assert has_whole_experts(found, scheme(scheme_name), tensor, requested=False) is False


def test_groups_must_divide_the_part_of_an_expert() -> None:
    """Groups of 128 do not divide 192 columns of an expert on each of eight GPUs; whole experts have 1536."""
    model, grouped = shape(QWEN), scheme("gptq-w4a16")
    assert indivisible_reason(model, grouped, Parallelism(tensor=8)) == (
        "groups of 128 do not divide 192, the input width of mlp.experts.*.down_proj on each of 8 GPUs"
    )
    assert indivisible_reason(model, grouped, Parallelism(tensor=8, divides_experts=True)) is None


def test_ignored_experts_need_no_groups() -> None:
    """A scheme that ignores experts may have groups that do not divide them; routers are never quantized."""
    grouped = replace(scheme("gptq-w4a16"), group_size=1024)
    problem = group_size_problem(grouped, shape(QWEN))
    assert problem
    assert problem.linear.name == "mlp.experts.*.down_proj"
    attention = replace(grouped, ignore=("lm_head", "re:.*experts.*"))
    assert group_size_problem(attention, shape(QWEN)) is None
    assert {linear.name.partition(".")[0] for linear in quantized_linears(attention, shape(QWEN))} == {"self_attn"}
    assert not any(linear.name.rsplit(".", 1)[-1] == "gate" for linear in quantized_linears(grouped, shape(QWEN)))


def test_ignored_experts_keep_their_16_bits() -> None:
    """Bytes of a checkpoint follow the scheme's patterns, expert by expert."""
    four_bits = scheme("gptq-w4a16")
    without = replace(four_bits, ignore=("lm_head", "re:.*experts.*"))
    model = shape("Qwen/Qwen3-30B-A3B")
    experts = sum(count * block.experts.parameters for block, count in model.counts if block.experts)
    saved = weight_bytes(model, without) - weight_bytes(model, four_bits)
    assert saved / experts == pytest.approx(2 - 0.5 - 2 / 128, rel=1e-3)


def test_active_experts_compute_a_token() -> None:
    """A token of Qwen3-235B-A22B takes about 2 x 22 billion FLOPs, one of Llama-3.1-70B more."""
    flops = token_flops(shape(QWEN), 0, with_logits=True)
    assert flops == pytest.approx(2 * 21.6e9, rel=0.01)
    assert flops < token_flops(shape("meta-llama/Llama-3.1-70B"), 0, with_logits=True)


def test_a_latent_cache_is_on_every_gpu() -> None:
    """DeepSeek-V3 keeps 512 + 64 numbers per token and layer, on each GPU of a tensor-parallel group."""
    demand = MemoryDemand(sequences=1, length=4096)
    caches = {
        gpus: gpu_memory(shape(DEEPSEEK), scheme("bf16"), Parallelism(tensor=gpus), demand).kv_cache for gpus in (1, 8)
    }
    assert caches == dict.fromkeys((1, 8), 61 * 576 * 2 * 4096)


def test_a_window_limits_the_cache() -> None:
    """Gemma-3-27B: one of six layers keeps all 131072 tokens, the others their window and one forward pass."""
    demand = MemoryDemand(sequences=1, length=131072, batched_tokens=8192)
    need = gpu_memory(shape("google/gemma-3-27b-it"), scheme("bf16"), Parallelism(), demand)
    token = 2 * 16 * 128 * 2
    assert need.kv_cache == 10 * token * 131072 + 52 * token * 9216  # 1024 - 1 + 8192 in blocks of 16


def test_a_state_does_not_grow_with_the_length() -> None:
    """Mamba-2 keeps a state per sequence; it has no maximum number of positions."""
    model = parse_config(MAMBA)
    needs = [
        gpu_memory(model, scheme("bf16"), Parallelism(), MemoryDemand(sequences=8, length=length)).kv_cache
        for length in (1, 100_000)
    ]
    assert needs == [8 * 64 * (128 * 64 * 128 + (128 * 64 + 2 * 8 * 128) * 3) * 4] * 2
    assert model.context_length is None


MANIFEST = """
[run]
name = "r"
[cluster]
profile = "c.toml"
[[models]]
id = "Qwen/Qwen3-235B-A22B"
[schemes]
use = ["bf16"]
[tasks]
use = ["arc_challenge"]
[evaluate]
backend = "vllm"
max_length = 4096
"""
PROFILE = """
name = "c"
scheduler = "local"
[gpu_classes.h100]
gpu = "H100-80"
gpus_per_node = 8
cpus_per_node = 8
memory_gib = 64
"""


def test_vllm_is_started_with_expert_parallelism(tmp_path: Path) -> None:
    """The engine has the planned layout; `enable_expert_parallel` of the manifest wins, and dense models ignore it."""
    (tmp_path / "c.toml").write_text(PROFILE, encoding="utf-8")
    (tmp_path / "m.toml").write_text(MANIFEST, encoding="utf-8")

    def engine(*options: str) -> dict[str, object]:
        plan = make_plan(resolve(load(tmp_path / "m.toml", options)))
        work = plan.units[0].work
        assert isinstance(work, EvaluateWork)
        is_parallel = plan_document(plan, (), {})["units"][0]["expert_parallel"]
        assert is_parallel is bool(dict(work.engine_options).get("enable_expert_parallel"))
        return dict(work.engine_options)

    assert engine() == {"tensor_parallel_size": 8, "enable_expert_parallel": True}
    refused = engine("evaluate.engine.enable_expert_parallel=false")
    assert refused == {"tensor_parallel_size": 8, "enable_expert_parallel": False}
    dense = engine("models.0.id=meta-llama/Llama-3.1-70B", "evaluate.engine.enable_expert_parallel=true")
    assert dense == {"tensor_parallel_size": 4}
