"""Model shapes: the sizes that memory and divisibility follow from, and the catalog's models by id. Reads no weights.

The rows and their sources stand in models.toml.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

from hpcq.catalog.toml_rows import catalog_rows, with_tuples

Bias = Literal["attention.qkv", "attention.output", "mlp"]


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A linear layer of a block, y = W·x + b, by its name in a checkpoint's block.

    cut: what tensor parallelism divides; where it divides the outputs, every GPU has all inputs.
    """

    name: str
    inputs: int
    outputs: int
    cut: Literal["inputs", "outputs"] = "outputs"
    has_bias: bool = False

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.inputs * self.outputs + (self.outputs if self.has_bias else 0)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a decoder whose blocks are alike (Llama's family): all that memory and divisibility need.

    hidden, intermediate: widths. heads, kv_heads: of attention, each of head_dim. context: positions at most.
    parameters: all weights, tied embeddings once. gated_mlp: three matrices in a feed-forward layer, not two. biases:
    which linear layers have one. architecture: as config.json names it; None: not said.
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
    gated_mlp: bool = True
    biases: tuple[Bias, ...] = ()
    architecture: str | None = field(default=None, compare=False)

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers of one block: those that a scheme quantizes, never head or embeddings."""
        return block_linears(
            hidden=self.hidden,
            intermediate=self.intermediate,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            gated_mlp=self.gated_mlp,
            biases=self.biases,
        )

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers inside the blocks, without biases."""
        return self.layers * sum(linear.inputs * linear.outputs for linear in self.linears)


def model_ids() -> tuple[str, ...]:
    """Every model whose shape the catalog knows."""
    return tuple(_shapes())


def find_shape(model_id: str) -> ModelShape | None:
    """The shape of the model of that id on the hub; None: unknown. Capital letters do not matter, as on the hub."""
    return {name.lower(): shape for name, shape in _shapes().items()}.get(model_id.lower())


def count_parameters(*, layers: int, hidden: int, vocabulary: int, tied_embeddings: bool, **block: Any) -> int:
    """All weights of a Llama of these sizes: blocks with two norms each, a last norm, embeddings, head."""
    linear = sum(linear.parameters for linear in block_linears(hidden=hidden, **block))
    return layers * (linear + 2 * hidden) + hidden + vocabulary * hidden * (1 if tied_embeddings else 2)


def block_linears(
    *,
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    gated_mlp: bool = True,
    biases: tuple[Bias, ...] = (),
) -> tuple[Linear, ...]:
    """The linear layers of a block of these sizes, by their names in Llama's checkpoints."""
    qkv, mlp = "attention.qkv" in biases, "mlp" in biases
    gates = ("gate_proj", "up_proj") if gated_mlp else ("up_proj",)
    query, key = heads * head_dim, kv_heads * head_dim
    return (
        Linear(name="self_attn.q_proj", inputs=hidden, outputs=query, has_bias=qkv),
        Linear(name="self_attn.k_proj", inputs=hidden, outputs=key, has_bias=qkv),
        Linear(name="self_attn.v_proj", inputs=hidden, outputs=key, has_bias=qkv),
        Linear(
            name="self_attn.o_proj", inputs=query, outputs=hidden, cut="inputs", has_bias="attention.output" in biases
        ),
        *(Linear(name=f"mlp.{gate}", inputs=hidden, outputs=intermediate, has_bias=mlp) for gate in gates),
        Linear(name="mlp.down_proj", inputs=intermediate, outputs=hidden, cut="inputs", has_bias=mlp),
    )


@lru_cache
def _shapes() -> dict[str, ModelShape]:
    shapes: dict[str, ModelShape] = {}
    for row in catalog_rows("models.toml")["models"]:
        shape = ModelShape(**with_tuples({key: value for key, value in row.items() if key != "ids"}))
        shapes.update(dict.fromkeys(row["ids"], shape))
    return shapes
