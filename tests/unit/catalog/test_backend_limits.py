"""Models that a backend knows by name and cannot compute, or computes wrong: refused because of their config.json."""

from __future__ import annotations

from typing import Any

import pytest

from hpcq.catalog.backend_limits import Computation, model_problem
from hpcq.catalog.hf_config import parse_config
from hpcq.catalog.models import find_model_shape, model_ids

ON_CPUS = Computation(dtype="float32", max_length=512, capability=None)
ON_H100 = Computation(dtype="bfloat16", max_length=512, capability=(9, 0))
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}
DELTA_NET = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "num_experts": 4,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "num_hidden_layers": 4,
}
LATENT = {
    "q_lora_rank": 64,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
}
ROUTING = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
YARN = {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}}


def problem(model_type: str, computation: Computation = ON_CPUS, **config: Any) -> str:
    """Return the problem of a tiny model, without the version; '' if there is none."""
    name = "".join(part.capitalize() for part in model_type.split("_")) + "ForCausalLM"
    model = parse_config({**SIZES, "model_type": model_type, "architectures": [name], **config})
    found = model_problem("vllm", model, computation) or ""
    assert model_problem("accelerate", model, computation) is None
    assert not found or found.startswith("vLLM 0.32 ")
    return found.removeprefix("vLLM 0.32 ")


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("computation", [ON_CPUS, ON_H100])
def test_windows_in_some_layers_are_refused(family: str, computation: Computation) -> None:
    """Observed at the node: an AssertionError ('Sliding window for some but all layers is not supported')."""
    assert problem(family, computation, **WINDOW).startswith(
        "supports a sliding window in all layers or in none, but not in some layers of Qwen"
    )
    assert not problem(family, computation, **{**WINDOW, "max_window_layers": 0})
    assert not problem(family, computation, **{**WINDOW, "max_window_layers": 2})
    assert not problem(family, computation, **{**WINDOW, "use_sliding_window": False})


def test_windows_that_vllm_ignores_are_refused() -> None:
    """Observed: log-likelihoods of a Qwen2-MoE with windows in some layers were wrong by 4 nats, without an error."""
    experts = {"num_experts": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 128}
    assert problem("qwen2_moe", **WINDOW, **experts) == (
        "ignores the sliding window of 32 tokens in some layers of Qwen2MoeForCausalLM (use_sliding_window in its "
        "config.json)"
    )
    assert not problem("qwen2_moe", **{**WINDOW, "sliding_window": 512}, **experts)
    assert not problem("qwen2_moe", **{**WINDOW, "max_window_layers": 0}, **experts)
    assert not problem("qwen3_moe", **WINDOW, num_experts=4, moe_intermediate_size=64)  # in all layers


def test_gated_delta_net_is_computed_in_16_bits() -> None:
    """Observed at the node: an AssertionError ('CPU GDN attention requires BF16'); GPUs accept float16, too."""
    assert problem("qwen3_next", **DELTA_NET) == (
        "computes the Gated DeltaNet of Qwen3NextForCausalLM on CPUs only in bfloat16 (evaluate.dtype), not in float32"
    )
    gpus = Computation(dtype="float32", max_length=None, capability=(9, 0))
    assert "on GPUs only in bfloat16 or float16" in problem("qwen3_next", gpus, **DELTA_NET)
    halves = Computation(dtype="float16", max_length=None, capability=(9, 0))
    assert not problem("qwen3_next", halves, **DELTA_NET)
    bfloat16 = Computation(dtype="bfloat16", max_length=None, capability=None)
    assert not problem("qwen3_next", bfloat16, **DELTA_NET)
    small = {**DELTA_NET, "linear_key_head_dim": 32, "linear_value_head_dim": 32}
    assert problem("qwen3_next", bfloat16, **small).endswith("on CPUs only if linear_key_head_dim is 64 or 128")
    assert not problem("qwen3_next", ON_H100, **small)


def test_latent_attention_on_cpus_needs_one_size_and_yarn() -> None:
    """Observed: 'Head dimension 80 is not supported by MLA' at the node; with 576, scores that were wrong by 4 nats."""
    small = {**LATENT, "kv_lora_rank": 64, "qk_rope_head_dim": 16}
    assert problem("deepseek_v2", **small) == (
        "computes the multi-head latent attention of DeepseekV2ForCausalLM on CPUs only if kv_lora_rank + "
        "qk_rope_head_dim is 576, and it is 80"
    )
    assert problem("deepseek_v2", **LATENT) == (
        "computes wrong rotary embeddings for the multi-head latent attention of DeepseekV2ForCausalLM on CPUs, if "
        "their rope_type is 'default'"
    )
    assert "wrong rotary embeddings" in problem("glm4_moe_lite", **LATENT)
    assert not problem("deepseek_v2", **LATENT, **YARN)
    linear = {"rope_scaling": {"type": "linear", "factor": 4.0}}
    assert problem("deepseek_v2", ON_H100, **LATENT, **linear) == (
        "computes the rope_type 'linear' of DeepseekV2ForCausalLM as 'yarn'"
    )


def test_latent_attention_on_gpus_needs_known_sizes_and_16_bits() -> None:
    """vLLM's kernels for prompts exist for four sets of sizes, in 16 bits, from compute capability 8.0 on."""
    assert not problem("deepseek_v2", ON_H100, **LATENT)
    assert problem("deepseek_v2", ON_H100, **{**LATENT, "qk_nope_head_dim": 48}) == (
        "has no kernel for the multi-head latent attention of DeepseekV2ForCausalLM on GPUs with "
        "qk_nope_head_dim = 48, qk_rope_head_dim = 64, v_head_dim = 128"
    )
    gpus = Computation(dtype="float32", max_length=None, capability=(9, 0))
    assert "on GPUs only in bfloat16 or float16 (evaluate.dtype)" in problem("deepseek_v2", gpus, **LATENT)
    turing = Computation(dtype="float16", max_length=None, capability=(7, 5))
    assert problem("deepseek_v2", turing, **LATENT).endswith("only on GPUs of compute capability 8.0 and up")


def test_routers_of_deepseek_v3_need_two_keys() -> None:
    """Observed: without topk_method a tensor could not be loaded; without scoring_func scores were wrong by 1.2 nats.

    transformers writes neither key.
    """
    assert problem("deepseek_v3", ON_H100, **LATENT) == (
        'needs "topk_method": "noaux_tc" and "scoring_func": "sigmoid" in the config.json of DeepseekV3ForCausalLM, '
        "which has no such key; transformers computes the routers so without it"
    )
    assert problem("deepseek_v3", ON_H100, **LATENT, topk_method="noaux_tc").startswith('needs "scoring_func"')
    assert not problem("deepseek_v3", ON_H100, **LATENT, **ROUTING)
    assert not problem("deepseek_v3", ON_H100, **{**LATENT, "first_k_dense_replace": 2})  # no experts


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", ["type", "rope_type"])
def test_dynamic_embeddings_end_at_the_length_of_the_training(key: str, name: str) -> None:
    """Observed: NaN for a prompt beyond max_position_embeddings, which vLLM multiplies by the factor."""
    dynamic = {key: {name: "dynamic", "factor": 4.0}}
    sentence = (
        "computes rotary embeddings of the rope_type 'dynamic' of LlamaForCausalLM only for texts of up to {0} tokens "
        "(set evaluate.max_length = {0})"
    )
    assert not problem("llama", ON_H100, **dynamic)
    assert problem("llama", ON_H100, **dynamic, max_position_embeddings=256) == sentence.format(256)
    derived = Computation(dtype="bfloat16", max_length=None, capability=(9, 0))
    assert problem("llama", derived, **dynamic) == sentence.format(1024)
    assert not problem("llama", derived, **{key: {name: "dynamic", "factor": 1.0, "alpha": 1000.0}})
    assert not problem("llama", derived, **{key: {name: "linear", "factor": 4.0}})


def test_a_key_that_only_vllm_reads_is_refused() -> None:
    """Observed: log-likelihoods of a GPT-NeoX with num_key_value_heads were wrong by 2 nats, without an error."""
    assert problem("gpt_neox").startswith("reads num_key_value_heads = 2 in the config.json of GptNeoxForCausalLM")
    assert not problem("gpt_neox", num_key_value_heads=None)


def test_keys_that_only_vllm_needs_are_named() -> None:
    """Observed at the node: AttributeError ('Lfm2Config' object has no attribute 'conv_dim')."""
    kinds = {"layer_types": ["conv", "full_attention"]}
    assert problem("lfm2", ON_H100, **kinds) == (
        "needs block_dim and conv_dim in the config.json of Lfm2ForCausalLM, which it does not have"
    )
    assert not problem("lfm2", ON_H100, **kinds, block_dim=128, conv_dim=128)


@pytest.mark.parametrize(("dtype", "is_quantized", "fails"), [
    ("float32", True, True), ("float16", True, True), ("bfloat16", True, False), ("float32", False, False),
])  # fmt: skip
def test_a_quantized_nemotron_h_is_computed_in_bfloat16(dtype: str, is_quantized: bool, fails: bool) -> None:  # noqa: FBT001
    """Observed at the node: a WorkerError ('its weights are decompressed to bfloat16, not to float32')."""
    config = {"hybrid_override_pattern": "M*-", "mamba_num_heads": 8, "mamba_head_dim": 32, "n_groups": 1}
    model = parse_config(
        {**SIZES, "model_type": "nemotron_h", "architectures": ["NemotronHForCausalLM"], "ssm_state_size": 16, **config}
    )
    computation = Computation(dtype=dtype, max_length=None, capability=None, is_quantized=is_quantized)
    found = model_problem("accelerate", model, computation)
    assert bool(found) is fails
    assert not found or found.endswith(f"only to bfloat16, not to {dtype} (remove evaluate.dtype)")


def test_no_model_of_the_catalog_is_refused_for_a_key_that_its_row_leaves_out() -> None:
    """Rows have only some keys of config.json; without the two of its routers, DeepSeek-V3 would be refused."""
    for name in model_ids():
        model = find_model_shape(name)
        assert model
        assert model_problem("vllm", model, ON_H100) is None, name
