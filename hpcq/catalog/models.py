"""Model shapes: the sizes that determine memory and divisibility, and those of known models (models.toml)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

from hpcq.catalog.toml_rows import catalog_rows, with_tuples

Bias = Literal["attention.qkv", "attention.output", "mlp"]
"""Linear layers of a block that add a bias."""


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A linear layer of a block, y = W·x + b.

    Attributes:
        name: Its name inside the block, as in Llama's checkpoints.
        in_features: Width of the input.
        out_features: Width of the output.
        tp_split: Tensor parallelism: "column" divides the outputs, "row" the inputs (vLLM's ColumnParallelLinear and
            RowParallelLinear).
        has_bias: It adds a bias.
    """

    name: str
    in_features: int
    out_features: int
    tp_split: Literal["column", "row"] = "column"
    has_bias: bool = False

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.in_features * self.out_features + (self.out_features if self.has_bias else 0)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder-only model with identical blocks (the Llama family).

    Attributes:
        layers: Number of blocks.
        hidden_size: Width of the hidden state.
        intermediate_size: Width of the feed-forward layer.
        heads: Number of attention heads.
        kv_heads: Number of key-value heads.
        head_dim: Width of a head.
        vocab_size: Number of tokens in the vocabulary.
        tied_embeddings: The head shares the weights of the embeddings.
        context_length: Maximum number of positions.
        parameters: Number of weights, with tied embeddings counted once.
        gated_mlp: The feed-forward layer has three matrices, not two.
        biases: Linear layers that have a bias.
        architecture: The architecture in config.json; None: unknown.
    """

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool
    context_length: int
    parameters: int
    gated_mlp: bool = True
    biases: tuple[Bias, ...] = ()
    architecture: str | None = field(default=None, compare=False)

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """Linear layers of one block, which a scheme quantizes; the head and the embeddings are not among them."""
        return block_linears(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            gated_mlp=self.gated_mlp,
            biases=self.biases,
        )

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers inside the blocks, without biases."""
        return self.layers * sum(linear.in_features * linear.out_features for linear in self.linears)


def model_ids() -> tuple[str, ...]:
    """Return the ids of all models in the catalog."""
    return tuple(_shapes())


def find_model_shape(model_id: str) -> ModelShape | None:
    """Return the shape of the model with this id on the hub, case-insensitively; None: unknown."""
    return {name.lower(): shape for name, shape in _shapes().items()}.get(model_id.lower())


def count_parameters(*, layers: int, hidden_size: int, vocab_size: int, tied_embeddings: bool, **block: Any) -> int:
    """Return the number of weights of a Llama model: blocks with two norms each, the last norm, embeddings, head."""
    linear = sum(linear.parameters for linear in block_linears(hidden_size=hidden_size, **block))
    return layers * (linear + 2 * hidden_size) + hidden_size + vocab_size * hidden_size * (1 if tied_embeddings else 2)


def block_linears(
    *,
    hidden_size: int,
    intermediate_size: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    gated_mlp: bool = True,
    biases: tuple[Bias, ...] = (),
) -> tuple[Linear, ...]:
    """Return the linear layers of a block, with their names in Llama's checkpoints."""
    qkv, mlp = "attention.qkv" in biases, "mlp" in biases
    gates = ("gate_proj", "up_proj") if gated_mlp else ("up_proj",)
    query, key = heads * head_dim, kv_heads * head_dim
    return (
        Linear(name="self_attn.q_proj", in_features=hidden_size, out_features=query, has_bias=qkv),
        Linear(name="self_attn.k_proj", in_features=hidden_size, out_features=key, has_bias=qkv),
        Linear(name="self_attn.v_proj", in_features=hidden_size, out_features=key, has_bias=qkv),
        Linear(
            name="self_attn.o_proj",
            in_features=query,
            out_features=hidden_size,
            tp_split="row",
            has_bias="attention.output" in biases,
        ),
        *(
            Linear(name=f"mlp.{gate}", in_features=hidden_size, out_features=intermediate_size, has_bias=mlp)
            for gate in gates
        ),
        Linear(
            name="mlp.down_proj", in_features=intermediate_size, out_features=hidden_size, tp_split="row", has_bias=mlp
        ),
    )


@lru_cache
def _shapes() -> dict[str, ModelShape]:
    shapes: dict[str, ModelShape] = {}
    for row in catalog_rows("models.toml")["models"]:
        shape = ModelShape(**with_tuples({key: value for key, value in row.items() if key != "ids"}))
        shapes.update(dict.fromkeys(row["ids"], shape))
    return shapes
