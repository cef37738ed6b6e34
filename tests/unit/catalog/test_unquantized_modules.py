"""Linear layers that no scheme quantizes, and models that a scheme cannot quantize."""

from __future__ import annotations

from typing import Any

import pytest

from hpcq.catalog.ignored_layers import matches
from hpcq.catalog.schemes import find_scheme
from hpcq.catalog.unquantized_modules import quantization_problem, unquantized_modules
from hpcq.core.work_records import Scheme

EXPERTS = {"num_experts": 8}


def scheme(name: str) -> Scheme:
    """A scheme of the catalog."""
    found = find_scheme(name)
    assert found
    return found


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (EXPERTS, "model.layers.3.mlp.gate"),
        ({"num_local_experts": 8}, "model.layers.3.block_sparse_moe.gate"),
        ({"n_routed_experts": 8}, "model.layers.3.mlp.gate"),
        (EXPERTS, "model.layers.3.feed_forward.router"),
        (EXPERTS, "model.layers.3.block_sparse_moe.router.layer"),
        (EXPERTS, "model.layers.3.mlp.shared_expert_gate"),
        ({"model_type": "jamba", **EXPERTS}, "model.layers.1.feed_forward.router"),
        ({"model_type": "jamba"}, "model.layers.0.mamba.dt_proj"),
        ({"model_type": "jamba"}, "model.layers.0.mamba.in_proj"),
        ({"linear_num_value_heads": 4}, "model.layers.0.linear_attn.in_proj_ba"),
        ({"index_n_heads": 4}, "model.layers.0.self_attn.indexer.weights_proj"),
    ],
)
def test_layers_that_stay_unquantized(config: dict[str, Any], name: str) -> None:
    """Routers, gates of shared experts, first-generation Mamba mixers and small gates are left alone.

    Observed: Jamba's router was quantized.
    """
    assert matches(name, unquantized_modules(config))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (EXPERTS, "model.layers.3.mlp.experts.7.gate_proj"),
        (EXPERTS, "model.layers.3.mlp.shared_expert.gate_proj"),
        (EXPERTS, "model.layers.3.mlp.gate_proj"),
        ({"num_experts": 1}, "model.layers.3.mlp.gate"),
        ({"model_type": "bamba"}, "model.layers.0.mamba.in_proj"),
        ({"linear_num_value_heads": 4}, "model.layers.0.linear_attn.in_proj_qkvz"),
        ({"kv_lora_rank": 512, "n_routed_experts": 8}, "model.layers.0.self_attn.kv_a_proj_with_mqa"),
    ],
)
def test_layers_that_are_quantized(config: dict[str, Any], name: str) -> None:
    """Experts, latent attention and projections with names like those of routers are quantized."""
    assert not matches(name, unquantized_modules(config))


def test_a_plain_decoder_has_none() -> None:
    """Nothing changes for the Llama family: the scheme's own list decides."""
    assert unquantized_modules({"model_type": "llama", "hidden_size": 64}) == ()


def test_patterns_are_those_of_compressed_tensors() -> None:
    """A pattern is a whole name, or a regular expression that matches from the start."""
    assert matches("lm_head", ("lm_head",))
    assert not matches("model.lm_head", ("lm_head",))
    assert matches("model.layers.0.mlp", ("re:model.layers",))
    assert not matches("the.model.layers", ("re:model.layers",))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "gpt2"}, "Conv1D"),
        ({"model_type": "mamba"}, "mixers"),
        ({"model_type": "gemma3", "vision_config": {"hidden_size": 64}}, "vision_config"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"model_type": "gpt_oss", "num_local_experts": 32}, "all experts of a layer in one tensor"),
        ({"model_type": "granitemoe", "num_local_experts": 32}, "all experts of a layer in one tensor"),
    ],
)
def test_models_that_no_scheme_can_quantize(config: dict[str, Any], reason: str) -> None:
    """The reason is a clause that ends with the fix, for every scheme.

    Observed: fp8-dynamic of GPT-2 quantized nothing; every expert of granitemoe and gpt-oss was random after loading.
    """
    for name in ("fp8-dynamic", "gptq-w4a16", "smoothquant-w8a8"):
        problem = quantization_problem(config, scheme(name))
        assert problem
        assert reason in problem
        assert ": " in problem


@pytest.mark.parametrize("name", ["smoothquant-w8a8", "awq-w4a16"])
def test_formats_of_experts_that_transformers_does_not_load_are_refused(name: str) -> None:
    """Experts with zero points or int8 activations would be initialized at random when transformers loads them.

    Observed: SmoothQuant and AWQ checkpoints of Qwen3-MoE could not be loaded.
    """
    problem = quantization_problem({"model_type": "qwen3_moe", **EXPERTS}, scheme(name))
    assert problem
    assert problem.endswith("choose fp8-dynamic, gptq-w4a16 or gptq-w8a16")
    assert quantization_problem({"model_type": "qwen3"}, scheme(name)) is None


@pytest.mark.parametrize("name", ["fp8-dynamic", "fp8", "gptq-w4a16", "gptq-w8a16"])
def test_formats_of_experts_that_transformers_loads_pass(name: str) -> None:
    """FP8 and symmetric integer weights are possible for experts."""
    assert quantization_problem({"model_type": "deepseek_v3", "n_routed_experts": 256}, scheme(name)) is None


@pytest.mark.parametrize(
    ("family", "name", "reason", "nearest"),
    [
        ("olmo2", "smoothquant-w8a8", "does not find the layers that SmoothQuant scales", "fp8-dynamic or gptq-w8a16"),
        (
            "gpt_neox",
            "smoothquant-w8a8",
            "does not find the layers that SmoothQuant scales",
            "fp8-dynamic or gptq-w8a16",
        ),
        ("falcon", "smoothquant-w8a8", "does not find the layers that SmoothQuant scales", "fp8-dynamic"),
        ("opt", "awq-w4a16", "does not find the layers that AWQ scales", "gptq-w4a16 or fp8-dynamic"),
        ("gemma2", "smoothquant-w8a8", "scales wrong layers of", "fp8-dynamic or gptq-w8a16"),
        ("olmo2", "awq-w4a16", "does not find the layers that AWQ scales", "gptq-w4a16 or fp8-dynamic"),
        ("opt", "smoothquant-w8a8", "does not find the layers that SmoothQuant scales", "fp8-dynamic or gptq-w8a16"),
        ("gpt_neox", "awq-w4a16", "does not find the layers that AWQ scales", "gptq-w4a16 or fp8-dynamic"),
        ("falcon", "awq-w4a16", "does not find the layers that AWQ scales", "fp8-dynamic"),
    ],
)
def test_transforms_without_a_correct_table_are_refused(family: str, name: str, reason: str, nearest: str) -> None:
    """SmoothQuant and AWQ need to know which norm feeds which layers; the nearest scheme that can is named.

    Observed: the plan accepted them for OPT, GPT-NeoX, OLMo-2 and Falcon, for which llmcompressor has no mappings.
    """
    problem = quantization_problem({"model_type": family}, scheme(name))
    assert problem
    assert reason in problem
    assert problem.endswith(f": choose {nearest}")
    for other in nearest.split(" or "):
        assert quantization_problem({"model_type": family}, scheme(other)) is None


@pytest.mark.parametrize("family", ["falcon", "mamba2"])
@pytest.mark.parametrize("name", ["gptq-w4a16", "gptq-w8a16"])
def test_integer_weights_of_falcon_and_mamba_2_are_refused(family: str, name: str) -> None:
    """transformers cannot load packed weights there, but FP8. Observed: Falcon's GPTQ was rounded and not packed."""
    problem = quantization_problem({"model_type": family}, scheme(name))
    assert problem == f"transformers cannot load integer weights of '{family}': choose fp8-dynamic"
    assert quantization_problem({"model_type": family}, scheme("fp8-dynamic")) is None
