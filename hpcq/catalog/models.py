"""Model shapes: from the catalog by id, or from a checkpoint's own config.json. Reads no weights.

The rows and their sources stand in models.toml.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hpcq.catalog.rows import catalog_rows


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a decoder with gated feed-forward layers (Llama's family): all that memory and divisibility need.

    hidden, intermediate: widths. heads, kv_heads: of attention, each of head_dim. context: positions at most.
    parameters: all weights, tied embeddings once.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied_embeddings: bool
    context: int
    parameters: int

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers inside the blocks: those that a scheme quantizes, never head or embeddings."""
        return self.layers * _block_linear_parameters(
            self.hidden, self.intermediate, self.heads, self.kv_heads, self.head_dim
        )


def model_ids() -> tuple[str, ...]:
    """Every model whose shape the catalog knows."""
    return tuple(_shapes())


def find_shape(model_id: str) -> ModelShape | None:
    """The shape of the model of that id on the hub; None: unknown. Capital letters do not matter, as on the hub."""
    return {name.lower(): shape for name, shape in _shapes().items()}.get(model_id.lower())


def shape_of_checkpoint(folder: Path) -> ModelShape | None:
    """The shape that `folder`/config.json states; None: it is of another kind, or states too little."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return shape_of_config(config) if isinstance(config, dict) else None


def shape_of_config(config: dict[str, Any]) -> ModelShape | None:
    """The shape that a transformers configuration states; None: it states too little."""
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        sizes = {
            "layers": int(config["num_hidden_layers"]),
            "hidden": hidden,
            "intermediate": int(config["intermediate_size"]),
            "heads": heads,
            "kv_heads": int(config.get("num_key_value_heads") or heads),
            "head_dim": int(config.get("head_dim") or hidden // heads),
            "vocabulary": int(config["vocab_size"]),
        }
        context = int(config["max_position_embeddings"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    tied = bool(config.get("tie_word_embeddings", False))
    parameters = count_parameters(tied_embeddings=tied, **sizes)
    return ModelShape(tied_embeddings=tied, context=context, parameters=parameters, **sizes)


def count_parameters(  # noqa: PLR0913 (a shape has so many sizes)
    *,
    layers: int,
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    vocabulary: int,
    tied_embeddings: bool,
) -> int:
    """All weights of a Llama of these sizes: blocks with two norms each, a last norm, embeddings, head; no biases."""
    block = _block_linear_parameters(hidden, intermediate, heads, kv_heads, head_dim) + 2 * hidden
    return layers * block + hidden + vocabulary * hidden * (1 if tied_embeddings else 2)


def _block_linear_parameters(hidden: int, intermediate: int, heads: int, kv_heads: int, head_dim: int) -> int:
    attention = 2 * hidden * head_dim * (heads + kv_heads)
    return attention + 3 * hidden * intermediate


@lru_cache
def _shapes() -> dict[str, ModelShape]:
    shapes: dict[str, ModelShape] = {}
    for row in catalog_rows("models.toml")["models"]:
        shape = ModelShape(**{key: value for key, value in row.items() if key != "ids"})
        shapes.update(dict.fromkeys(row["ids"], shape))
    return shapes
