"""Values in a config.json that no model can have: texts instead of numbers, factors of zero.

Sizes are checked where they are read (`ModelConfig.size`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_NUMBERS = ("rope_theta", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "factor")
"""Keys whose values are numbers above 0, if they are not null."""
_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
"""Keys whose values are true or false; a text would be true."""
_ROPE_TABLES = ("rope_scaling", "rope_parameters")
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
    for key in _ROPE_TABLES:
        table = values.get(key)
        if isinstance(table, Mapping):
            yield from _number_problems(table, f"{prefix}{key}.")
            for kind, inner in table.items():  # Gemma-3: a table per kind of attention
                yield from _number_problems(inner, f"{prefix}{key}.{kind}.") if isinstance(inner, Mapping) else ()
        elif table:
            yield _sentence(prefix + key, table, "a table")


def _number_problems(values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key in _NUMBERS:
        value = values.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        if value is not None and not is_number:
            yield _sentence(prefix + key, value, "a number above 0")


def _sentence(key: str, value: object, expected: str) -> str:
    return f"{key} in its config.json is {json.dumps(value)}, not {expected}"
