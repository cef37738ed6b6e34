"""Linear layers that no scheme quantizes, by the kind of model, and families that cannot be quantized at all.

A scheme quantizes every linear layer except what it ignores itself (`Scheme.ignore`, the head by default) and what this
module names. Quantizer and planner both read this module, so that a plan's sizes are those of the checkpoint. The
patterns are in the syntax of compressed-tensors: an exact name, or "re:" with a regular expression that matches from
the start. Reads a config.json of transformers (5.17) and imports no model library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from hpcq.catalog.schemes import find_scheme
from hpcq.catalog.toml_rows import catalog_rows
from hpcq.catalog.tool_limits import family_problem
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import Scheme

Config = Mapping[str, Any]

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_MODALITIES = ("vision_config", "audio_config", "thinker_config", "text_config")
LLMCOMPRESSOR = "llmcompressor"
_FLOATING_POINT = ("fp32", "bf16", "fp16")

_MAMBA_1_FAMILIES = ("mamba", "falcon_mamba", "jamba")
"""Families with mixers of the first Mamba generation, which project to a state per channel."""

_FUSED_EXPERTS_FAMILIES = (
    "dbrx",
    "gemma4_text",
    "gpt_oss",
    "granitemoe",
    "granitemoe_swa",
    "granitemoehybrid",
    "granitemoeshared",
    "jetmoe",
    "llama4",
    "llama4_text",
)
"""Families whose checkpoints have the experts of a layer in one tensor."""

_UNPACKABLE_FAMILIES = ("falcon", "mamba2")
"""Families whose initialization reads weights that packed layers do not have (_init_weights in transformers 5.17)."""

_CONV1D = "its layers are Conv1D modules with transposed weights, for which no backend has a quantized format"
_ONLY_MIXERS = "all its linear layers are in mixers, which stay unquantized"
_UNQUANTIZABLE_FAMILIES = {
    "decision_transformer": _CONV1D,
    "gpt2": _CONV1D,
    "imagegpt": _CONV1D,
    "openai-gpt": _CONV1D,
    "falcon_mamba": _ONLY_MIXERS,
    "mamba": _ONLY_MIXERS,
    "rwkv": "no backend has a quantized format for its layers",
}

_WITHOUT_CACHE_SCALES = (
    "bloom",
    "falcon",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "mamba",
    "mamba2",
    "mpt",
    "nemotron_h",
    "opt",
    "rwkv",
)
"""Families without attention modules in which compressed-tensors (0.19) finds keys and values: it looks for layers
named k_proj, v_proj, qkv_proj or kv_b_proj in modules named self_attn or attention, and for num_key_value_heads in
config.json, which OPT does not have. Measured with tests/families.py."""

_INSTEAD_OF = {"smoothquant": ("fp8-dynamic", "gptq-w8a16"), "awq": ("gptq-w4a16", "fp8-dynamic")}
"""Schemes with about as many bits as those of a transform, the nearest first."""

_TITLES = {"smoothquant": "SmoothQuant", "awq": "AWQ"}


_WITHOUT_TRANSFORMS = ("zamba2",)
"""Families of unknown sizes in which llmcompressor finds the layers of no transform (tests/quantize_matrix.py)."""


class Transform(Enum):
    """Whether llmcompressor's SmoothQuant or AWQ moves scales between the right layers of a family."""

    CORRECT = "correct"
    WRONG = "wrong"
    MISSING = "missing"


@dataclass(frozen=True, kw_only=True)
class UnquantizedModules:
    """Linear layers of a kind of model that no scheme quantizes.

    Attributes:
        pattern: Names of the modules.
        what: What they are, in the plural.
        reason: Why they stay unquantized.
        source: Where the reason can be verified.
        applies: Whether a configuration has such modules.
    """

    pattern: str
    what: str
    reason: str
    source: str
    applies: Callable[[Config], bool]


def has_experts(config: Config) -> bool:
    """Return whether feed-forward layers are mixtures of more than one expert."""
    return any(isinstance(config.get(key), int) and config[key] > 1 for key in _EXPERTS)


def _has_mamba_1(config: Config) -> bool:
    return config.get("model_type") in _MAMBA_1_FAMILIES


_RULES = (
    UnquantizedModules(
        pattern=r"re:.*\.(router|gate|router\.layer|router\.classifier|gate\.wg)$",
        what="routers",
        reason="a rounded router sends tokens to other experts, and has few weights",
        source="llm-compressor, examples/quantizing_moe; vLLM 0.32, GateLinear has no quantization",
        applies=has_experts,
    ),
    UnquantizedModules(
        pattern=r"re:.*\.shared_expert_gate$",
        what="gates of shared experts",
        reason="they have one output",
        source="vLLM 0.32, models/qwen2_moe.py: quant_config=None",
        applies=has_experts,
    ),
    UnquantizedModules(
        pattern=r"re:.*\.(mixer|mamba)\.(in_proj|x_proj|dt_proj|out_proj)$",
        what="projections of Mamba mixers",
        reason="vLLM computes them unquantized, and transformers' fused kernels read their weights directly",
        source="vLLM 0.32, layers/mamba/mamba_mixer.py has no quant_config; transformers 5.17, modeling_mamba.py",
        applies=_has_mamba_1,
    ),
    UnquantizedModules(
        pattern=r"re:.*\.linear_attn\.(in_proj_ba|in_proj_b|in_proj_a)$",
        what="gates of linear attention",
        reason="they have few outputs, and their errors accumulate in the state",
        source="config.json of Qwen/Qwen3-Next-80B-A3B-Instruct-FP8, modules_to_not_convert",
        applies=lambda config: "linear_num_value_heads" in config,
    ),
    UnquantizedModules(
        pattern=r"re:.*\.indexer\.(wk|weights_proj)$",
        what="weights of the sparse attention's indexer",
        reason="vLLM computes them unquantized, in one layer",
        source="vLLM 0.32, models/deepseek_v2.py: wk_weights_proj has quant_config=None",
        applies=lambda config: "index_n_heads" in config,
    ),
)


def unquantized_modules(config: Config) -> tuple[str, ...]:
    """Return the patterns of linear layers that no scheme quantizes in a model with this configuration."""
    return tuple(rule.pattern for rule in _RULES if rule.applies(config))


def quantization_problem(config: Config, scheme: Scheme) -> str | None:
    """Return why `scheme` cannot quantize a model with this configuration, as a clause with the fix; None: it can."""
    family = str(config.get("model_type"))
    modality = next((key for key in _MODALITIES if config.get(key)), None)
    if modality:
        return f"it is not a text-only model ({modality} in its config.json): name a text-only checkpoint"
    if config.get("is_encoder_decoder"):
        return "it has an encoder (is_encoder_decoder in its config.json): name a decoder-only model"
    if family in _UNQUANTIZABLE_FAMILIES:
        return f"{_UNQUANTIZABLE_FAMILIES[family]} ('{family}'): evaluate it unquantized"
    with_experts = has_experts(config)
    return (
        family_problem(config, scheme, with_experts=with_experts)
        or _transform_problem(family, scheme, with_experts=with_experts)
        or _format_problem(family, scheme, with_experts=with_experts)
        or _cache_problem(config, scheme)
    )


def transform_verdict(family: str, method: str) -> Transform | None:
    """Return what was measured about a transform of llmcompressor; None: nothing, or it depends on options."""
    if family in _WITHOUT_TRANSFORMS:
        return Transform.MISSING
    of_method = catalog_rows("transforms.toml").get(method, {})
    return next((verdict for verdict in Transform if family in of_method.get(verdict.value, ())), None)


def _transform_problem(family: str, scheme: Scheme, *, with_experts: bool) -> str | None:
    if scheme.tool != LLMCOMPRESSOR or scheme.method not in _INSTEAD_OF or scheme.mappings:
        return None
    title, installed = _TITLES[scheme.method], catalog_rows("transforms.toml")["measured_with"]["llmcompressor"]
    match transform_verdict(family, scheme.method):
        case Transform.MISSING:
            reason = f"llmcompressor {installed} does not find the layers that {title} scales together in '{family}'"
        case Transform.WRONG:
            reason = f"{title} in llmcompressor {installed} scales wrong layers of '{family}' and changes its outputs"
        case _:
            return None
    others = (find_scheme(name) for name in _INSTEAD_OF[scheme.method])
    fitting = [one.name for one in others if one and not _format_problem(family, one, with_experts=with_experts)]
    return f"{reason}: choose {' or '.join(fitting)}" if fitting else None  # None: another check refuses it


def _cache_problem(config: Config, scheme: Scheme) -> str | None:
    """Return why llmcompressor 0.14 cannot calibrate the scheme's KV cache; None: it can, or it is not quantized."""
    family = str(config.get("model_type"))
    if scheme.kv_cache is None or scheme.tool != LLMCOMPRESSOR:
        return None
    if family in _WITHOUT_CACHE_SCALES:
        return f"compressed-tensors finds no keys and values in '{family}': remove kv_cache, or choose fp8-dynamic"
    if config.get("kv_lora_rank") is not None:
        return (
            "it caches latents (kv_lora_rank in its config.json), but scales of the KV cache would be those of keys "
            "and values: remove kv_cache, or choose fp8-dynamic"
        )
    return None


def _format_problem(family: str, scheme: Scheme, *, with_experts: bool) -> str | None:
    """Return why transformers 5.17 could not load the checkpoint; it would initialize such weights at random."""
    # In other formats hpcq dequantizes the weights, and transformers loads them as unquantized.
    is_integer = scheme.weights.startswith("int") and scheme.checkpoint_format is None
    is_fp4 = scheme.weights in ("nvfp4", "mxfp4")
    if family in _UNPACKABLE_FAMILIES and (is_integer or is_fp4):
        kind = "integer" if is_integer else scheme.weights
        return f"transformers cannot load {kind} weights of '{family}': choose fp8-dynamic"
    if with_experts and family in _FUSED_EXPERTS_FAMILIES:
        return (
            f"checkpoints of '{family}' have all experts of a layer in one tensor, for which there is no quantized "
            "format: evaluate it unquantized, or name a checkpoint that its publisher has quantized"
        )
    is_weight_only = scheme.symmetric and scheme.activations in _FLOATING_POINT
    loads_experts = is_weight_only if is_integer else scheme.weights == "mxfp4" or _is_plain_fp8(scheme)
    if with_experts and not loads_experts:
        return (
            "transformers loads quantized experts only in FP8 without blocks, in MXFP4, or in symmetric integers with "
            "unquantized activations: choose fp8-dynamic, gptq-w4a16 or gptq-w8a16"
        )
    return None


def _is_plain_fp8(scheme: Scheme) -> bool:
    return scheme.weights == "fp8_e4m3" and scheme.granularity != "block"
