"""Model shape from a config.json of transformers (5.17), or the reason why the model is not supported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcq.catalog.models import Bias, ModelShape, count_parameters

_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_OTHER_BLOCKS = ("kv_lora_rank", "ssm_cfg", "mamba_d_state", "attn_layer_period", "block_configs")
"""Keys of configurations with compressed attention, or with blocks of different kinds."""
_ATTENTIONS = ("full_attention", "sliding_attention", "chunked_attention")
_UNGATED = ("gpt_neox", "nemotron", "persimmon", "phi", "starcoder2")
"""Families whose feed-forward layers have two matrices; their configurations have the keys of `_SIZES`."""
_QKV_BIASES = ("qwen", "qwen2")
"""Families with biases that no key of the configuration mentions (modeling_qwen.py, modeling_qwen2.py)."""


class UnsupportedConfigError(Exception):
    """The shape of a model cannot be read from its configuration; the message has the reason."""


def find_config_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """Return the shape in a transformers configuration; None: it is not supported."""
    try:
        return parse_config(config)
    except UnsupportedConfigError:
        return None


def read_checkpoint_shape(folder: Path) -> ModelShape:
    """Return the shape in `folder`/config.json.

    Raises:
        UnsupportedConfigError: The file cannot be read, or the configuration is not supported.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UnsupportedConfigError("its config.json is missing or not valid JSON") from None
    if not isinstance(config, dict):
        raise UnsupportedConfigError("its config.json is not a JSON object")
    return parse_config(config)


def parse_config(config: Mapping[str, Any]) -> ModelShape:
    """Return the shape in a transformers configuration.

    The number of parameters is exact for the Llama family. For other families small vectors may be missing, about a
    thousandth of the total.

    Raises:
        UnsupportedConfigError: Blocks are of different kinds, it is not a text-only decoder, or a size is missing.
    """
    _check_supported(config)
    try:
        layers, hidden, intermediate, heads, vocabulary = (int(config[key]) for key in _SIZES)
        context = int(config["max_position_embeddings"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head_dim = int(config.get("head_dim") or hidden // heads)
    except KeyError as error:
        raise UnsupportedConfigError(f"its config.json has no {error.args[0]}") from None
    except (TypeError, ValueError, ZeroDivisionError):
        raise UnsupportedConfigError("a size in its config.json is not one number for all blocks") from None
    if min(layers, hidden, intermediate, heads, vocabulary, context, kv_heads, head_dim) < 1:
        raise UnsupportedConfigError("a size in its config.json is zero or less")
    family = config.get("model_type")
    sizes: dict[str, Any] = {
        "layers": layers,
        "hidden_size": hidden,
        # Qwen 1 states both halves of the gated layer together (modeling_qwen.py, QWenMLP).
        "intermediate_size": intermediate // 2 if family == "qwen" else intermediate,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocabulary,
        "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
        "gated_mlp": family not in _UNGATED,
        "biases": _biases(config),
    }
    architectures = config.get("architectures") or [None]
    return ModelShape(
        context_length=context, parameters=count_parameters(**sizes), architecture=architectures[0], **sizes
    )


def _check_supported(config: Mapping[str, Any]) -> None:
    if "text_config" in config or "vision_config" in config:
        raise UnsupportedConfigError("it is not a text-only decoder (text_config, vision_config)")
    if config.get("is_encoder_decoder"):
        raise UnsupportedConfigError("it has an encoder (is_encoder_decoder)")
    for key in _EXPERTS:
        if isinstance(config.get(key), int) and config[key] > 1:
            raise UnsupportedConfigError(f"its feed-forward layers are mixtures of experts ({key} = {config[key]})")
    for key in _OTHER_BLOCKS:
        if config.get(key):
            raise UnsupportedConfigError(f"not all of its blocks are plain attention ({key})")
    kinds = config.get("layer_types") or ()
    other = [kind for kind in kinds if kind not in _ATTENTIONS] if isinstance(kinds, list) else ()
    if other:
        raise UnsupportedConfigError(f"not all of its blocks are plain attention (layer_types has {other[0]!r})")


def _biases(config: Mapping[str, Any]) -> tuple[Bias, ...]:
    everywhere = config.get("use_bias") or config.get("model_type") in _UNGATED[:1] + _UNGATED[2:]
    attention = everywhere or config.get("attention_bias")
    stated: dict[Bias, object] = {
        "attention.qkv": attention or config.get("model_type") in _QKV_BIASES,
        "attention.output": attention,
        "mlp": everywhere or config.get("mlp_bias"),
    }
    return tuple(name for name, has_bias in stated.items() if has_bias)
