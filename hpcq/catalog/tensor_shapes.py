"""Shapes and types of a checkpoint's linear layers, compared with what its config.json describes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hpcq.catalog.model_shape import Linear, ModelShape
from hpcq.catalog.safetensors_headers import TensorHeader

_FLOATS = ("F32", "F16", "BF16")
"""Types of weights that are not quantized, and so have the shape of their layer."""
_UNQUANTIZED = (*_FLOATS, "F64")
_TRANSPOSED_FAMILIES = ("gpt2",)
"""Families whose layers are transformers' Conv1D, with inputs by outputs."""
_TEXT_PART = "language_model"
_QUERIES = ("q_proj", "o_proj")
_FEED_FORWARD = ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "c_fc")


def shape_problem(headers: Sequence[TensorHeader], shape: ModelShape) -> str | None:
    """Return which tensor of an unquantized checkpoint has another shape than its layer, as the beginning of a clause.

    Only tensors whose names are those of transformers are compared. None: all of them agree.
    """
    if shape.config.get("quantization_config") or shape.config.get("compression_config"):
        return None
    stored = {header.name: header for header in headers if header.dtype in _FLOATS}
    return next(_problems(stored, shape), None)


def type_problem(headers: Sequence[TensorHeader], shape: ModelShape) -> str | None:
    """Return which layer of a checkpoint that declares no quantization is quantized, as the beginning of a clause.

    transformers (5.17) would take the stored numbers for weights, without scales.
    """
    stored = {header.name: header for header in headers}
    for name, _ in _layers(stored, shape):
        header = stored.get(f"{name}.weight")
        if header and header.dtype not in _UNQUANTIZED:
            return f"{header.name} has the type {header.dtype}, but its config.json declares no quantization"
    return None


def _problems(stored: Mapping[str, TensorHeader], shape: ModelShape) -> Iterator[str]:
    is_transposed = shape.config.get("model_type") in _TRANSPOSED_FAMILIES
    for name, linear in _layers(stored, shape):
        sizes = (linear.out_features, linear.in_features)
        for kind, expected in (("weight", sizes[::-1] if is_transposed else sizes), ("bias", sizes[:1])):
            header = stored.get(f"{name}.{kind}")
            if header and len(header.shape) == len(expected) and header.shape != expected:
                yield (
                    f"{header.name} is {_text(header.shape)}, but its config.json describes {_text(expected)}"
                    f"{_keys(linear, header.shape, expected)}"
                )


def _layers(stored: Mapping[str, TensorHeader], shape: ModelShape) -> Iterator[tuple[str, Linear]]:
    """Yield the linear layers with the name that they may have in the files, for each prefix of the part for text."""
    inner = shape.prefix.partition(".")[2]
    prefixes = (shape.prefix, f"{_TEXT_PART}.{shape.prefix}", f"model.{_TEXT_PART}.{inner}", inner)
    prefix = next((one for one in prefixes if any(name.startswith(f"{one}.0.") for name in stored)), shape.prefix)
    for linear in shape.linears:
        yield linear.name, linear
    for index, block in enumerate(shape.blocks):
        for count, linears in block.groups:
            for linear in linears:
                numbers = range(count) if "*" in linear.name else (0,)
                yield from ((f"{prefix}.{index}.{linear.name.replace('*', str(number))}", linear) for number in numbers)


def _keys(linear: Linear, found: Sequence[int], expected: Sequence[int]) -> str:
    """Return the keys of config.json from which the shape follows, in parentheses; '': they are not known here."""
    part = linear.name.rpartition(".")[2]
    if tuple(found) == tuple(expected)[::-1]:
        return " (the shape is reversed)"
    if linear.kv_features:
        return " (num_key_value_heads, head_dim)"
    if part in _QUERIES:
        return " (num_attention_heads, head_dim)"
    return " (intermediate_size)" if part in _FEED_FORWARD else ""


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
