"""Values of a transformers configuration, with other names of a key, defaults of the model_type, and checks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from hpcq.catalog.toml_rows import FOLDER

_ALIASES = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads", "attention_heads"),
    "num_key_value_heads": ("num_kv_heads",),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size", "block_ff_dim"),
    "max_position_embeddings": ("n_positions", "n_ctx", "max_seq_len", "seq_length", "context_length"),
    "num_experts": ("num_local_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": ("moe_k", "moe_topk", "top_k_experts"),
    "n_shared_experts": ("num_shared_experts", "moe_num_shared_experts"),
    "tie_word_embeddings": ("tie_embedding",),
    "layer_types": ("layers_block_type", "block_types"),
}
"""Other names of the same key, by family. All names in config.json come before all defaults."""

DEFAULTS_FILE = "config_defaults.json"
"""Defaults of transformers' configuration classes, by model_type: files on the hub leave out keys with default values.

It is generated (`python -m tests.models.config_defaults`), with the keys that the catalog reads and values that are not
null. It is JSON because TOML takes 17 ms to parse. A test compares it with the classes.
"""


@lru_cache
def family_defaults() -> dict[str, dict[str, Any]]:
    """Return the content of DEFAULTS_FILE. It is cached: do not modify it."""
    content: dict[str, dict[str, Any]] = json.loads(FOLDER.joinpath(DEFAULTS_FILE).read_text(encoding="utf-8"))
    return content


_NEVER_ZERO = ("vocab_size", "hidden_size", "num_hidden_layers")


class UnsupportedConfigError(Exception):
    """The shape of a model cannot be read from its configuration; the message has the reason."""


class InvalidConfigError(UnsupportedConfigError):
    """Invalid value in a config.json, with which transformers cannot build a model; the message has the key."""


class ModelConfig:
    """Values of one configuration.

    Args:
        values: Content of config.json.
        model_type: Its family, whose defaults apply to absent keys.

    Attributes:
        family: That family.
    """

    def __init__(self, values: Mapping[str, Any], model_type: str) -> None:
        self.family = model_type
        self._values = values
        self._defaults = family_defaults().get(model_type, {})

    @property
    def merged(self) -> dict[str, Any]:
        """All values, with defaults of absent keys."""
        return {**self._defaults, **self._values}

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, also if it is null in config.json; `default`: it has neither value nor default."""
        names = (key, *_ALIASES.get(key, ()))
        for values in (self._values, self._defaults):
            for name in names:
                if name in values:
                    return values[name]
        return default

    def flag(self, key: str) -> bool:
        """Return the value of a Boolean key; absent or null: false."""
        return bool(self.get(key))

    def size(self, key: str, default: int | None = None) -> int:
        """Return a positive integer.

        Args:
            key: Its key.
            default: Value of an absent key, or of null.

        Raises:
            InvalidConfigError: It is a text or negative.
            UnsupportedConfigError: It is missing, zero, or different for each block.
        """
        value = self.get(key)
        value = default if value is None else value
        if value is None:
            raise UnsupportedConfigError(f"its config.json has no {key}")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, str | bool):
            raise InvalidConfigError(f"{key} in its config.json is {json.dumps(value)}, not a number")
        if not isinstance(value, int):
            raise UnsupportedConfigError(f"{key} in its config.json is not one number for all blocks")
        if value < 1:
            kind = InvalidConfigError if value < 0 or key in _NEVER_ZERO else UnsupportedConfigError
            raise kind(f"{key} in its config.json is zero or less")
        return value

    def count(self, key: str) -> int:
        """Return an integer that may be zero; absent or null: 0."""
        return self.size(key) if self.get(key) else 0

    def expanded(self, key: str) -> int:
        """Return the hidden size times the value of a key, by default 2."""
        width = int(self.get(key, 2) * self.hidden)
        if width < 1:
            raise UnsupportedConfigError(f"{key} in its config.json is zero or less")
        return width

    @property
    def hidden(self) -> int:
        """Width of the hidden state."""
        return self.size("hidden_size")

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return self.size("num_hidden_layers")

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return self.size("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        """Number of key-value heads."""
        return self.size("num_key_value_heads", self.heads)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.size("head_dim", self.hidden // self.heads)

    @property
    def width(self) -> int:
        """Width of the feed-forward layer."""
        return self.size("intermediate_size")

    def listed(self, key: str, index: int) -> Any:
        """Return the element for block `index` of a list; None: there is no list.

        Raises:
            UnsupportedConfigError: It has fewer elements than blocks.
        """
        values = self.get(key)
        if not isinstance(values, list):
            return None
        if index >= len(values):
            raise UnsupportedConfigError(f"{key} in its config.json has only {len(values)} elements")
        return values[index]
