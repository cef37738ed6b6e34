"""Models that a backend knows by name, and cannot compute or computes wrong because of values in config.json.

Read in the sources of vLLM 0.32.0 and transformers 5.17 and, for CPUs, measured with tiny models in float32
(docs/scores.md). What is said of GPUs is read only. The name of a model's class alone is judged in architectures.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hpcq.catalog.config_differences import rope_settings
from hpcq.catalog.model_config import ModelConfig
from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.tools import backends
from hpcq.core.frozen import dataclass

_FLOAT32, _BFLOAT16 = "float32", "bfloat16"

_ONE_WINDOW = ("qwen2", "qwen3")
"""Families whose windows must be equal in all layers (model_executor/models/qwen2.py asserts it)."""
_WITHOUT_MIXED_WINDOWS = ("qwen2_moe",)
"""Families of which vLLM ignores the windows unless all layers have one (engine/arg_utils.py, models/qwen2_moe.py).

The log-likelihoods of a tiny model differed by 4.0 nats.
"""
_DELTA_NET = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid")
"""Families with Gated DeltaNet."""
_DELTA_NET_HEADS_ON_CPUS = (64, 128)
"""Sizes of its heads that a CPU computed; 32 failed ("Unexpected head dim size")."""
_LATENT = (
    "axk1", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "kimi_k2",
    "kimi_linear", "longcat_flash", "pangu_ultra_moe",
)  # fmt: skip
"""Families that vLLM computes with its backends for multi-head latent attention (MLA), if kv_lora_rank is not null.

The list is in transformers_utils/model_arch_config_convertor.py, is_deepseek_mla.
"""
_LATENT_SIZES = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_LATENT_SIZES_ON_GPUS = ((128, 64, 128), (192, 64, 256), (64, 64, 128), (256, 0, 256))
"""Sizes for which a GPU computes prompts (v1/attention/backends/mla/prefill; flash_attn.py has all of them)."""
_LATENT_CAPABILITY = (8, 0)
"""Oldest compute capability of FlashAttention 2, with which GPUs before Blackwell compute prompts."""
_LATENT_ROW_ON_CPUS = 576
"""The only size of a row of the cache on CPUs (v1/attention/backends/mla/cpu_mla.py and amx_mla.py)."""
_YARN_FOR_ALL = ("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "kimi_k2")
"""Families of which vLLM computes every rope_type other than "default" as YaRN (models/deepseek_v2.py)."""
_ROUTING = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
"""What transformers computes in routers of DeepSeek-V3 without these keys, and vLLM only with them.

Published checkpoints have them, but transformers does not save them.
"""
_ROUTED = ("deepseek_v3", "kimi_k2")


@dataclass(frozen=True, kw_only=True)
class Computation:
    """How a model is computed.

    Attributes:
        dtype: Type of the computation.
        max_length: Maximum tokens of prompt and text; None: vLLM derives it from config.json.
        capability: Compute capability of the GPU; None: on CPUs.
        is_quantized: The checkpoint is quantized.
    """

    dtype: str
    max_length: int | None
    capability: tuple[int, int] | None
    is_quantized: bool = False

    @property
    def place(self) -> str:
        """Kind of the processors."""
        return "CPUs" if self.capability is None else "GPUs"


Rule = Callable[[ModelShape, ModelConfig, Computation], Iterator[str]]


def model_problem(backend: str, model: ModelShape, computation: Computation) -> str | None:
    """Return why the backend cannot compute a model correctly, as the end of a sentence; None: no problem is known.

    Args:
        backend: Name of the backend.
        model: The model, with its configuration.
        computation: How it would be computed.
    """
    text = model.config.get("text_config")
    part: Mapping[str, Any] = text if isinstance(text, Mapping) else model.config
    values = ModelConfig(part, str(part.get("model_type") or model.config.get("model_type")))
    found = (clause for rule in _RULES.get(backend, ()) for clause in rule(model, values, computation))
    clause = next(found, None)
    return clause and f"{backends()[backend].title} {clause}"


def _windows(model: ModelShape, values: ModelConfig, computation: Computation) -> Iterator[str]:
    windows = {attention.window for attention, _ in model.attentions}
    if len(windows) == 1:
        return
    named = f"{model.architecture} (use_sliding_window in its config.json)"
    if values.family in _ONE_WINDOW:
        yield f"supports a sliding window in all layers or in none, but not in some layers of {named}"
    longest = computation.max_length or model.context_length
    narrowest = min(window for window in windows if window is not None)
    if values.family in _WITHOUT_MIXED_WINDOWS and (longest is None or longest > narrowest):
        yield f"ignores the sliding window of {narrowest} tokens in some layers of {named}"


def _delta_net(model: ModelShape, values: ModelConfig, computation: Computation) -> Iterator[str]:
    if values.family not in _DELTA_NET:
        return
    on_cpus = computation.capability is None
    if (computation.dtype != _BFLOAT16) if on_cpus else (computation.dtype == _FLOAT32):
        types = _BFLOAT16 if on_cpus else f"{_BFLOAT16} or float16"
        yield (
            f"computes the Gated DeltaNet of {model.architecture} on {computation.place} only in {types} "
            f"(evaluate.dtype), not in {computation.dtype}"
        )
    for key in ("linear_key_head_dim", "linear_value_head_dim") if on_cpus else ():
        if values.get(key) not in _DELTA_NET_HEADS_ON_CPUS:
            sizes = " or ".join(map(str, _DELTA_NET_HEADS_ON_CPUS))
            yield f"computes the Gated DeltaNet of {model.architecture} on CPUs only if {key} is {sizes}"


def _latent_attention(model: ModelShape, values: ModelConfig, computation: Computation) -> Iterator[str]:
    if values.family not in _LATENT or values.get("kv_lora_rank") is None:
        return
    name, rope = f"multi-head latent attention of {model.architecture}", rope_settings(values.merged)
    rope_type = rope.get("rope_type", "default")
    if values.family in _YARN_FOR_ALL and rope_type not in ("default", "yarn"):
        yield f"computes the rope_type '{rope_type}' of {model.architecture} as 'yarn'"
    if computation.capability is None:
        yield from _latent_on_cpus(name, values, rope_type)
    elif not values.get("index_topk"):  # sparse attention has backends of its own
        yield from _latent_on_gpus(name, values, computation)


def _latent_on_cpus(name: str, values: ModelConfig, rope_type: str) -> Iterator[str]:
    row = values.count("kv_lora_rank") + values.count("qk_rope_head_dim")
    if values.get("index_topk"):
        yield f"does not support the sparse attention (index_topk) of the {name} on CPUs"
    if row != _LATENT_ROW_ON_CPUS:
        yield (
            f"computes the {name} on CPUs only if kv_lora_rank + qk_rope_head_dim is {_LATENT_ROW_ON_CPUS}, and it is "
            f"{row}"
        )
    if rope_type == "default":  # its kernel, measured: 4.2 nats; the one of YaRN agrees
        yield f"computes wrong rotary embeddings for the {name} on CPUs, if their rope_type is 'default'"


def _latent_on_gpus(name: str, values: ModelConfig, computation: Computation) -> Iterator[str]:
    sizes = tuple(values.count(key) for key in _LATENT_SIZES)
    if sizes not in _LATENT_SIZES_ON_GPUS:
        stated = ", ".join(f"{key} = {size}" for key, size in zip(_LATENT_SIZES, sizes, strict=True))
        yield f"has no kernel for the {name} on GPUs with {stated}"
    if computation.dtype == _FLOAT32:
        yield (
            f"computes the {name} on GPUs only in {_BFLOAT16} or float16 (evaluate.dtype), not in {computation.dtype}"
        )
    if computation.capability and computation.capability < _LATENT_CAPABILITY:
        yield f"computes the {name} only on GPUs of compute capability 8.0 and up"


def _routing(model: ModelShape, values: ModelConfig, _computation: Computation) -> Iterator[str]:
    absent = {key: value for key, value in _ROUTING.items() if values.get(key) is None}
    if values.family in _ROUTED and model.experts and absent:
        stated = " and ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in absent.items())
        yield (
            f"needs {stated} in the config.json of {model.architecture}, which has no such key; transformers computes "
            "the routers so without it"
        )


def _dynamic_rope(model: ModelShape, values: ModelConfig, computation: Computation) -> Iterator[str]:
    """Texts longer than the table of rotary embeddings (dynamic_ntk_scaling_rope.py): NaN, or what is beyond it."""
    rope, trained = rope_settings(values.merged), values.get("max_position_embeddings")
    if rope.get("rope_type") != "dynamic" or not trained:
        return
    longest = computation.max_length or trained * (rope.get("factor") or 1)
    if longest > trained:
        yield (
            f"computes rotary embeddings of the rope_type 'dynamic' of {model.architecture} only for texts of up to "
            f"{trained} tokens (set evaluate.max_length = {trained})"
        )


def _grouped_heads(model: ModelShape, values: ModelConfig, _computation: Computation) -> Iterator[str]:
    """GPT-NeoX has as many keys as queries. transformers ignores num_key_value_heads, vLLM uses it."""
    stated = values.get("num_key_value_heads")
    if values.family == "gpt_neox" and stated not in (None, values.heads):
        yield (
            f"reads num_key_value_heads = {stated} in the config.json of {model.architecture}, which transformers "
            "ignores: remove the key"
        )


def _required_keys(model: ModelShape, values: ModelConfig, _computation: Computation) -> Iterator[str]:
    """models/lfm2.py reads them; transformers' configuration class does not have them."""
    absent = [key for key in ("block_dim", "conv_dim") if values.get(key) is None]
    if values.family == "lfm2" and absent:
        yield f"needs {' and '.join(absent)} in the config.json of {model.architecture}, which it does not have"


def _decompressed(model: ModelShape, values: ModelConfig, computation: Computation) -> Iterator[str]:
    """The unit fails with the same reason: other families are decompressed to the type of the computation."""
    if values.family == "nemotron_h" and computation.is_quantized and computation.dtype != _BFLOAT16:
        yield (
            f"decompresses the weights of {model.architecture} only to {_BFLOAT16}, not to {computation.dtype} "
            "(remove evaluate.dtype)"
        )


_RULES: Mapping[str, tuple[Rule, ...]] = {
    "accelerate": (_decompressed,),
    "vllm": (_windows, _delta_net, _latent_attention, _routing, _dynamic_rope, _grouped_heads, _required_keys),
}
