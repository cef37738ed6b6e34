"""Mutations of the configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from random import Random
from typing import Any

from tests.mutations.checkpoint_edit import edit_json
from tests.mutations.kinds.files import break_file
from tests.mutations.kinds.registry import KINDS, Case, Effect, Kind, Target, kind


def _edit_configuration(case: Case, change: Callable[[dict[str, Any]], object]) -> None:
    def apply(content: dict[str, Any]) -> None:
        change(content)

    edit_json(case.model / "config.json", apply)


def _set(effect: Effect, name: str, values: dict[str, Callable[[Any], list[Any]]]) -> None:
    """Register a kind that sets one of several keys of the configuration to another value."""

    def apply(case: Case, random: Random) -> str | None:
        content = json.loads((case.model / "config.json").read_text(encoding="utf-8"))
        present = [key for key in values if content.get(key) is not None]
        if not present:
            return None
        key = random.choice(present)
        value = random.choice(values[key](content[key]))
        _edit_configuration(case, lambda content: content.update({key: value}))
        return f"{key}: {content[key]!r} -> {value!r}"

    KINDS[name] = Kind(name=name, target=Target.CONFIGURATION, effect=effect, apply=apply)


_set(
    Effect.OTHER_INPUT,
    "other_computation",
    {
        "rms_norm_eps": lambda _: [1e-2, 1e-12],
        "layer_norm_epsilon": lambda _: [1e-1],
        "hidden_act": lambda old: [one for one in ("relu", "gelu", "silu") if one != old],
        "hidden_activation": lambda _: ["relu"],
        "activation_function": lambda _: ["relu"],
        "sliding_window": lambda old: [2 * old, old // 2, 4, 1, None],
        "num_experts_per_tok": lambda _: [1, 3],
        "norm_topk_prob": lambda old: [not old],
        "routed_scaling_factor": lambda _: [0.5],
        "attn_logit_softcapping": lambda _: [2.0, None],
        "final_logit_softcapping": lambda _: [2.0, None],
        "query_pre_attn_scalar": lambda _: [8, 256],
        "rope_parameters": lambda old: [_with_theta(old)],
        "layer_types": lambda old: [old[::-1], [old[0]] * len(old), [old[-1]] * len(old)],
        "scale_attn_weights": lambda old: [not old],
        "scale_attn_by_inverse_layer_idx": lambda old: [not old],
    },
)


def _with_theta(rope: Any) -> Any:
    """Return rope settings with another base, also those that are set per type of layer."""
    if not isinstance(rope, dict):
        return rope
    return {
        key: 500.0 if key == "rope_theta" else _with_theta(value) if isinstance(value, dict) else value
        for key, value in rope.items()
    }


_set(
    Effect.NONE,
    "other_shape",
    {
        "num_hidden_layers": lambda old: [old - 1, old + 1, 0],
        "n_layer": lambda old: [old - 1, old + 1],
        "hidden_size": lambda old: [old // 2, 2 * old],
        "n_embd": lambda old: [old // 2],
        "intermediate_size": lambda old: [old // 2, old + 32],
        "vocab_size": lambda old: [old - 1, old + 64, 260],
        "num_key_value_heads": lambda old: [old * 2, 1],
        "head_dim": lambda old: [old // 2, old * 2],
        "num_experts": lambda old: [old - 1, old + 4],
        "n_routed_experts": lambda old: [old // 2, old * 2],
        "num_local_experts": lambda old: [old - 1, old + 4],
        "moe_intermediate_size": lambda old: [old // 2],
        "kv_lora_rank": lambda old: [old // 2],
        "n_positions": lambda old: [old // 2, old * 2],
    },
)
_set(
    Effect.NONE,
    "tie_flipped",
    {"tie_word_embeddings": lambda old: [not old]},
)
_set(
    Effect.OTHER_INPUT,
    "heads_regrouped",
    {
        "num_attention_heads": lambda old: [old * 2, old // 2, 3],
        "n_head": lambda old: [old * 2, old // 2],
    },
)
_set(
    Effect.NONE,
    "other_dtype_in_config",
    {
        key: lambda _: ["float32", "float16", "bfloat16", "float8_e4m3fn", "int8", "auto", None]
        for key in ("dtype", "torch_dtype")
    },
)
_set(
    Effect.OTHER_INPUT,
    "other_type_in_config",
    {
        "model_type": lambda _: ["llama", "qwen3", "mistral", "gpt2", "nonsense", ""],
        "architectures": lambda _: [["LlamaForCausalLM"], ["Nonsense"], [], None, "text", ["BertForMaskedLM"]],
    },
)
_set(
    Effect.MUST_SHOW,
    "short_context",
    {"max_position_embeddings": lambda _: [16, 32, 48]},
)
_set(
    Effect.OTHER_INPUT,
    "other_special_tokens_in_config",
    {
        "eos_token_id": lambda _: [0, 7, [2, 7], None, 10**6, -1],
        "bos_token_id": lambda _: [0, 7, None, 10**6],
        "pad_token_id": lambda _: [0, 7, None, 10**6, -1],
    },
)


@kind(Target.CONFIGURATION, Effect.OTHER_INPUT)
def drop_key(case: Case, random: Random) -> str | None:
    """Remove a key of the configuration: its default applies."""
    content = json.loads((case.model / "config.json").read_text(encoding="utf-8"))
    key = random.choice(list(content))
    _edit_configuration(case, lambda content: content.pop(key))
    return key


@kind(Target.CONFIGURATION)
def unknown_key(case: Case, random: Random) -> str | None:
    """Add a key that nothing reads."""
    key = random.choice(["_comment", "use_flash_attn", "auto_map_old", "mlp_bias_", "quant_method"])
    _edit_configuration(case, lambda content: content.update({key: random.choice([1, "x", None, [], {}])}))
    return key


@kind(Target.CONFIGURATION)
def wrong_type_in_config(case: Case, random: Random) -> str | None:
    """Give a number of the configuration as a text, a list, or something that is no number."""
    content = json.loads((case.model / "config.json").read_text(encoding="utf-8"))
    key = random.choice([key for key, value in content.items() if isinstance(value, int) and "token_id" not in key])
    value = random.choice([str(content[key]), [content[key]], math.nan, "many", -1, {}, 1.5])
    _edit_configuration(case, lambda content: content.update({key: value}))
    return f"{key}: {value!r}"


@kind(Target.CONFIGURATION)
def claims_quantization(case: Case, random: Random) -> str | None:
    """Let the configuration say that the weights are quantized, although they are not."""
    value = random.choice(
        [
            {"quant_method": "gptq", "bits": 4, "group_size": 128},
            {"quant_method": "fp8", "activation_scheme": "dynamic"},
            {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            {"quant_method": "nonsense"},
            {},
            "fp8",
        ]
    )
    _edit_configuration(case, lambda content: content.update(quantization_config=value))
    return json.dumps(value)


_CODE_NAMES = ["other/repo--modeling_own.Own", "modeling_own.Own", "Own", "", 5, None]


@kind(Target.CONFIGURATION)
def names_code(case: Case, random: Random) -> str | None:
    """Name code of another repository, or a file that does not exist; without permission it is not used."""
    name, key = random.choice(_CODE_NAMES), random.choice(["AutoModelForCausalLM", "AutoConfig"])
    edit_json(case.model / "config.json", lambda content: content.update(auto_map={key: name}))
    return f"{key}: {name!r}"


@kind(Target.TOKENIZER, Effect.OTHER_INPUT)
def names_tokenizer_code(case: Case, random: Random) -> str | None:
    """Name code of a tokenizer: without permission transformers uses tokenizer.json without the family's class."""
    name = random.choice(_CODE_NAMES)
    edit_json(case.model / "tokenizer_config.json", lambda content: content.update(auto_map={"AutoTokenizer": name}))
    return repr(name)


@kind(Target.CONFIGURATION)
def broken_config_file(case: Case, random: Random) -> str | None:
    """Damage a JSON file as a whole."""
    path = case.model / random.choice(["config.json", "config.json", "tokenizer_config.json", "generation_config.json"])
    return f"{path.name}: {break_file(path, random)}"
