"""The shape of any model from its config.json, or the reason why it cannot be sized. Reads no weights.

Knows the words of transformers' configurations (5.17); must not know the catalog's own rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcq.catalog.models import Bias, ModelShape, count_parameters

_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_OTHER_BLOCKS = ("kv_lora_rank", "ssm_cfg", "mamba_d_state", "attn_layer_period", "block_configs")
"""Of configurations whose attention is compressed, or whose blocks are not all alike."""
_ATTENTIONS = ("full_attention", "sliding_attention", "chunked_attention")
_UNGATED = ("gpt_neox", "nemotron", "persimmon", "phi", "starcoder2")
"""Families whose feed-forward layers have two matrices, and which state the sizes above."""
_QKV_BIASES = ("qwen", "qwen2")
"""Families with biases that no key of theirs tells of (modeling_qwen.py, modeling_qwen2.py)."""


class CannotSize(Exception):
    """A configuration of another kind, or one that says too little; the message says which."""


def shape_of_checkpoint(folder: Path) -> ModelShape | None:
    """The shape that `folder`/config.json states; None: it is of another kind, or states too little."""
    try:
        return read_shape(folder)
    except CannotSize:
        return None


def shape_of_config(config: Mapping[str, Any]) -> ModelShape | None:
    """The shape that a transformers configuration states; None: it is of another kind, or states too little."""
    try:
        return size_config(config)
    except CannotSize:
        return None


def read_shape(folder: Path) -> ModelShape:
    """The shape that `folder`/config.json states.

    Raises:
        CannotSize: there is none, or it cannot be sized.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CannotSize("it has no config.json that can be read") from None
    if not isinstance(config, dict):
        raise CannotSize("its config.json is not a table of keys")
    return size_config(config)


def size_config(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a transformers configuration states.

    Exact for Llama's family; of others the small vectors beside the matrices may be missed, a thousandth of the whole.

    Raises:
        CannotSize: it mixes kinds of blocks, is more than a decoder of text, or says too little.
    """
    _refuse_other_kinds(config)
    try:
        layers, hidden, intermediate, heads, vocabulary = (int(config[key]) for key in _SIZES)
        context = int(config["max_position_embeddings"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head_dim = int(config.get("head_dim") or hidden // heads)
    except KeyError as error:
        raise CannotSize(f"its config.json has no {error.args[0]}") from None
    except (TypeError, ValueError, ZeroDivisionError):
        raise CannotSize("a size in its config.json is not one number for all blocks") from None
    if min(layers, hidden, intermediate, heads, vocabulary, context, kv_heads, head_dim) < 1:
        raise CannotSize("a size in its config.json is zero or less")
    family = config.get("model_type")
    sizes: dict[str, Any] = {
        "layers": layers,
        "hidden": hidden,
        # Both halves of the gated layer together (modeling_qwen.py, QWenMLP).
        "intermediate": intermediate // 2 if family == "qwen" else intermediate,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "vocabulary": vocabulary,
        "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
        "gated_mlp": family not in _UNGATED,
        "biases": _biases(config),
    }
    named = config.get("architectures") or [None]
    return ModelShape(context=context, parameters=count_parameters(**sizes), architecture=named[0], **sizes)


def _refuse_other_kinds(config: Mapping[str, Any]) -> None:
    if "text_config" in config or "vision_config" in config:
        raise CannotSize("it is more than a decoder of text (text_config, vision_config)")
    if config.get("is_encoder_decoder"):
        raise CannotSize("it has an encoder, too (is_encoder_decoder)")
    for key in _EXPERTS:
        if isinstance(config.get(key), int) and config[key] > 1:
            raise CannotSize(f"its feed-forward layers are mixtures of experts ({key} = {config[key]})")
    for key in _OTHER_BLOCKS:
        if config.get(key):
            raise CannotSize(f"not all of its blocks are plain attention ({key})")
    kinds = config.get("layer_types") or ()
    other = [kind for kind in kinds if kind not in _ATTENTIONS] if isinstance(kinds, list) else ()
    if other:
        raise CannotSize(f"not all of its blocks are plain attention (layer_types has {other[0]!r})")


def _biases(config: Mapping[str, Any]) -> tuple[Bias, ...]:
    everywhere = config.get("use_bias") or config.get("model_type") in _UNGATED[:1] + _UNGATED[2:]
    attention = everywhere or config.get("attention_bias")
    stated: dict[Bias, object] = {
        "attention.qkv": attention or config.get("model_type") in _QKV_BIASES,
        "attention.output": attention,
        "mlp": everywhere or config.get("mlp_bias"),
    }
    return tuple(name for name, is_there in stated.items() if is_there)
