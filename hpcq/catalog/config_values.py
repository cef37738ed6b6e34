"""Values in a config.json that no model can have: strings instead of numbers, factors of zero, unknown names.

Sizes are checked where they are read (`ModelConfig.size`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from hpcq.catalog.remote_code import known_names

_NUMBERS = ("rope_theta", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "factor")
"""Keys whose values are numbers above 0, if they are not null."""
_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
"""Keys whose values are true or false; a string would count as true."""
_ROPE_TABLES = ("rope_scaling", "rope_parameters")
_ROPE_TYPE_KEYS = ("rope_type", "type")
_OTHER_ROPE_TYPES = ("axial", "deepseek_llama_scaling", "deepseek_yarn", "mllama4", "mrope", "ntk", "su", "xdrope")
"""Older names, those of single families of transformers, and those of vLLM (0.32)."""
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
_ROTARY_HEADS = ("deepseek_v2", "deepseek_v3")
"""Families of which transformers (5.17) takes the size of the rotary embedding from head_dim, if it is there.

With a size of 1 or 2 there is one frequency, which torch repeats for all: a wrong score without an error.
"""


def value_problem(config: Mapping[str, Any]) -> str | None:
    """Return which value of a config.json is invalid, and why, as a clause; None: no problem was found."""
    text = config.get("text_config")
    parts = [("", config), *([("text_config.", text)] if isinstance(text, Mapping) else [])]
    return next((problem for prefix, part in parts for problem in _problems(part, prefix)), None)


def _problems(values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    head, rotary = values.get("head_dim"), values.get("qk_rope_head_dim")
    if values.get("model_type") in _ROTARY_HEADS and rotary is not None and head not in (None, rotary):
        yield _sentence(f"{prefix}head_dim", head, f"{json.dumps(rotary)} as qk_rope_head_dim")
    for key in _FLAGS:
        if isinstance(values.get(key), str):
            yield _sentence(prefix + key, values[key], "true or false")
    yield from _number_problems(values, prefix)
    has_code = bool(values.get("auto_map"))  # it may have functions of its own
    for key in () if has_code else _ACTIVATIONS:
        yield from _name_problems(values, prefix, key, known_names("activations"))
    for key in _ROPE_TABLES:
        table = values.get(key)
        if isinstance(table, Mapping):
            yield from _rope_problems(table, f"{prefix}{key}.", has_code=has_code)
        elif table:
            yield _sentence(prefix + key, table, "a table")


def _rope_problems(table: Mapping[str, Any], prefix: str, *, has_code: bool) -> Iterator[str]:
    yield from _number_problems(table, prefix)
    for key in () if has_code else _ROPE_TYPE_KEYS:
        yield from _name_problems(table, prefix, key, {*known_names("rope_types"), *_OTHER_ROPE_TYPES})
    for kind, inner in table.items():  # Gemma-3: a table per kind of attention
        if isinstance(inner, Mapping):
            yield from _rope_problems(inner, f"{prefix}{kind}.", has_code=has_code)


def _name_problems(values: Mapping[str, Any], prefix: str, key: str, known: Collection[str]) -> Iterator[str]:
    name = values.get(key)
    if name is not None and name not in known:
        yield f"{prefix}{key} in its config.json is {json.dumps(name)}, which transformers does not have"


def _number_problems(values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key in _NUMBERS:
        value = values.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        if value is not None and not is_number:
            yield _sentence(prefix + key, value, "a number above 0")


def _sentence(key: str, value: object, expected: str) -> str:
    return f"{key} in its config.json is {json.dumps(value)}, not {expected}"
