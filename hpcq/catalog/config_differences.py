"""Settings in config.json that change what a model computes, compared between a checkpoint and its base model.

Tools write configurations of several versions of transformers. A key that only one of the two files has is compared
with its default, if that is known. Older names of the settings of rotary embeddings are compared with the newer ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from hpcq.catalog.model_config import ModelConfig

Config = Mapping[str, Any]

_KEYS = (
    "attention_bias",
    "attention_multiplier",
    "attn_logit_softcapping",
    "embedding_multiplier",
    "final_logit_softcapping",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "logit_scale",
    "logits_scaling",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "norm_eps",
    "norm_topk_prob",
    "num_attention_heads",
    "num_experts_per_tok",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "rms_norm_eps",
    "routed_scaling_factor",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
)
"""Keys that are compared with the default of the family (config_defaults.json) if one file does not have them."""
_OFF = ("attn_logit_softcapping", "final_logit_softcapping", "sliding_window")
"""Keys that are null if a family's class has no default."""
_WINDOW = ("sliding_window", "max_window_layers")
_WITHOUT_EFFECT = {
    "architectures",  # compared by the caller, like the sizes
    "auto_map",
    "compression_config",
    "dtype",
    "id2label",
    "initializer_range",
    "label2id",
    "layer_types",  # newer versions write it in place of a pattern
    "layers_block_type",
    "max_length",
    "model_type",
    "moe_layer_end_index",
    "name_or_path",
    "output_router_logits",
    "pretraining_tp",
    "text_config",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_SIZES = ("head_dim", "intermediate_size", "num_key_value_heads", "num_kv_heads")
"""Keys that the caller compares through the sizes of layers. Newer versions write computed values."""
_WITHOUT_EFFECT_ENDS = ("_token_id", "_token_ids", "dropout", "_pdrop", "_drop", "_prob", "_loss_coef", "_version")
_ROPE_TABLES = ("rope_scaling", "rope_parameters")
_ROPE_KEYS = {
    "type": "rope_type",
    "rope_theta": "rope_theta",
    "rotary_emb_base": "rope_theta",
    "partial_rotary_factor": "partial_rotary_factor",
    "rotary_pct": "partial_rotary_factor",
    "rope_local_base_freq": "sliding_attention.rope_theta",
    "original_max_position_embeddings": "original_max_position_embeddings",
}
"""Other names of the settings of rotary embeddings; all but the first are also keys outside of the tables."""
_ROPE_NAMES = {"su": "longrope"}
_MAIN_ATTENTION = "full_attention"
_MISSING = object()
_UNKNOWN = (_MISSING, "auto")


def config_differences(config: Config, base: Config, *, has_sizes: bool = False) -> Iterator[str]:
    """Yield the settings in which a checkpoint differs from its base model, such as 'hidden_act is "gelu", not "silu"'.

    Settings of the quantization, of training, and token ids are left out.

    Args:
        config: Content of the checkpoint's config.json.
        base: Content of the base model's config.json.
        has_sizes: Also compare the sizes of layers.
    """
    own, expected = _values(config), _values(base)
    for key in dict.fromkeys((*(_SIZES if has_sizes else ()), *_KEYS, *own.merged, *expected.merged)):
        if _has_effect(key) or (has_sizes and key in _SIZES):
            yield from _difference(key, _value(own, key), _value(expected, key))
    yield from _rope_differences(rope_settings(own.merged), rope_settings(expected.merged))


def _difference(name: str, value: object, expected: object) -> Iterator[str]:
    if value not in _UNKNOWN and expected not in _UNKNOWN and value != expected:
        yield f"{name} is {json.dumps(value)}, not {json.dumps(expected)}"


def _values(config: Config) -> ModelConfig:
    """Return the values of the part for text. A key outside of it has priority if it is about the whole model."""
    text = config.get("text_config")
    part: Config = text if isinstance(text, Mapping) else config
    outer = config.get("tie_word_embeddings")
    values = part if outer is None else {**part, "tie_word_embeddings": outer}
    return ModelConfig(values, str(part.get("model_type") or config.get("model_type")))


def _has_effect(key: str) -> bool:
    if key in _KEYS:
        return True
    is_rope = key in _ROPE_TABLES or key in _ROPE_KEYS
    is_other = "quant" in key or key.startswith("_") or key.endswith(_WITHOUT_EFFECT_ENDS)
    return not (is_rope or is_other or key in (*_WITHOUT_EFFECT, *_SIZES))


def _value(values: ModelConfig, key: str) -> Any:
    """Return the value that a model has; _MISSING: unknown."""
    if key in _WINDOW and values.get("use_sliding_window") is False:
        return None  # newer versions also write null
    return values.get(key, None if key in _OFF else _MISSING)


def rope_settings(values: Config) -> dict[str, Any]:
    """Return the settings of rotary embeddings under their newer names; empty: config.json has none.

    Those of other kinds of attention than the main one have a prefix.
    """
    found: dict[str, Any] = {}
    for table in (values.get(key) for key in _ROPE_TABLES):
        if isinstance(table, Mapping):
            nested = {kind: inner for kind, inner in table.items() if isinstance(inner, Mapping)}
            for kind, inner in (nested or {_MAIN_ATTENTION: table}).items():
                prefix = "" if kind == _MAIN_ATTENTION else f"{kind}."
                found |= {f"{prefix}{_ROPE_KEYS.get(key, key)}": value for key, value in inner.items()}
    for key, name in _ROPE_KEYS.items():
        if key != "type" and values.get(key) is not None:
            found.setdefault(name, values[key])
    if found:
        kind = found.get("rope_type") or "default"
        found["rope_type"] = _ROPE_NAMES.get(str(kind), kind)
    return found


def _rope_differences(own: Config, base: Config) -> Iterator[str]:
    for key in own:
        yield from _difference(key, own[key], base.get(key, _MISSING))
