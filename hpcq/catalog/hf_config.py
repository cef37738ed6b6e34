"""Model shape from a config.json of transformers (5.17), or the reason why the model is not supported."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcq.catalog.block_parts import join_parts, linear
from hpcq.catalog.families import FAMILIES, TEXT_PARTS, Family
from hpcq.catalog.ignored_layers import matches
from hpcq.catalog.model_config import InvalidConfigError, ModelConfig, UnsupportedConfigError
from hpcq.catalog.model_shape import VALUE_BYTES, Block, Linear, ModelShape
from hpcq.catalog.safetensors_headers import stored_dtype, tensor_bytes
from hpcq.catalog.unquantized_modules import unquantized_modules

OTHER_PARTS = ("vision_config", "audio_config", "speech_config")
"""Keys of the configurations of the other parts of a multimodal model."""
_MAX_LAYERS = 10_000
MORE_LAYERS = "num_nextn_predict_layers"
"""Key of the number of layers for multi-token prediction, which are in the checkpoint but not in the model."""
PREDICTION_PART = re.compile(r"(^|\.)(eh_proj|enorm|hnorm|embed_tokens|shared_head)(\.|$)")
"""Modules that only these layers have, of DeepSeek-V3 and GLM-4-MoE: other further layers belong to the model."""


def find_config_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """Return the shape in a transformers configuration; None: it is not supported."""
    try:
        return parse_config(config)
    except UnsupportedConfigError:
        return None


def read_checkpoint_shape(folder: Path) -> ModelShape:
    """Return the shape in `folder`/config.json, compared with the sizes of the checkpoint's safetensors files.

    Raises:
        UnsupportedConfigError: The file cannot be read, or the configuration is not supported.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UnsupportedConfigError("its config.json is missing or not valid JSON") from None
    if not isinstance(config, dict):
        raise UnsupportedConfigError("its config.json is not a JSON object")
    found = tensor_bytes(folder)
    try:
        shape = parse_config(config)
    except UnsupportedConfigError as error:
        if found is None or isinstance(error, InvalidConfigError):
            raise
        raise UnsupportedConfigError(f"{error}; its safetensors files have {found / 2**30:.1f} GiB") from None
    dtype = stated_dtype(config) or stored_dtype(folder) or _dtype_of_size(shape, found or _pickle_bytes(folder))
    shape = replace(shape, stored_dtype=dtype)
    if found is None:
        return shape
    return replace(shape, checkpoint_bytes=found, contradiction=_contradiction(config, shape, found))


def stated_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the type of the weights that a configuration states, of the part for text first; None: it states none."""
    text = config.get("text_config")
    for values in (text, config):
        for key in ("dtype", "torch_dtype"):
            value = values.get(key) if isinstance(values, dict) else None
            if isinstance(value, str) and (name := value.removeprefix("torch.")) in VALUE_BYTES:
                return name
    return None


def _dtype_of_size(shape: ModelShape, size: int) -> str | None:
    """Return float32 if all files, or the index of those that are not here yet, have 32 bits per parameter."""
    is_wide = size >= VALUE_BYTES["float32"] * shape.parameters and not shape.left_out
    return "float32" if is_wide else None


def _pickle_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("pytorch_model*.bin"))


def parse_config(config: Mapping[str, Any]) -> ModelShape:
    """Return the shape in a transformers configuration: the parameters of the model that transformers makes of it.

    Of a multimodal model, only the part for text is included.

    Raises:
        UnsupportedConfigError: The family is unknown, it is not a decoder, or a size is missing or invalid.
    """
    if config.get("is_encoder_decoder"):
        raise UnsupportedConfigError("it has an encoder (is_encoder_decoder)")
    text, model_type = _text_part(config)
    family, values = FAMILIES.get(model_type), ModelConfig(text, model_type)
    if family is None:
        raise UnsupportedConfigError(f"its family is not in hpcq's table (model_type = '{model_type}')")
    try:
        return _shape(family, values, config)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError):
        raise UnsupportedConfigError("a value in its config.json is of the wrong type") from None


def is_tied(config: Mapping[str, Any], values: ModelConfig) -> bool:
    """Whether the head shares the weights of the embeddings.

    A multimodal configuration may state it outside of text_config.
    """
    outer = config.get("tie_word_embeddings") if "text_config" in config else None
    return bool(values.get("tie_word_embeddings", False) if outer is None else outer)


def _text_part(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Return the configuration of the part for text, and its family."""
    model_type, text = config.get("model_type"), config.get("text_config")
    if text is None:
        text, inner = config, model_type
    elif isinstance(text, dict):
        inner = text.get("model_type") or TEXT_PARTS.get(str(model_type))
    else:
        raise UnsupportedConfigError("text_config in its config.json is not an object")
    if not isinstance(inner, str):
        raise UnsupportedConfigError("its config.json has no model_type")
    return text, inner


def _shape(family: Family, values: ModelConfig, config: Mapping[str, Any]) -> ModelShape:
    hidden, vocabulary, tied = values.hidden, values.size("vocab_size"), is_tied(config, values)
    embedding, biased = values.size(family.embedding_size, hidden), family.has_head_bias(values)
    kinds: dict[Block, int] = {}
    layers = _layers(values)
    pattern = tuple(kinds.setdefault(join_parts(family.parts(values, index)), len(kinds)) for index in range(layers))
    linears = family.linears(values)
    if not tied:
        linears = (*linears, linear(family.head, embedding, vocabulary, bias=biased))
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    patterns = unquantized_modules(values.merged)
    return ModelShape(
        hidden_size=hidden,
        vocab_size=vocabulary,
        context_length=None if family.is_unlimited else values.size("max_position_embeddings"),
        kinds=tuple(_marked(block, patterns) for block in kinds),
        pattern=pattern,
        tied_embeddings=tied,
        embedding_size=embedding,
        linears=linears,
        other=family.norm * hidden + family.outside(values) + (vocabulary if tied and biased else 0),
        prefix=family.prefix,
        architecture=str(architecture) if architecture else None,
        config=config,
        left_out=tuple(key for key in OTHER_PARTS if key in config),
    )


def _marked(block: Block, patterns: tuple[str, ...]) -> Block:
    """Return the block with the linear layers marked that no scheme quantizes."""

    def marked(linears: tuple[Linear, ...]) -> tuple[Linear, ...]:
        return tuple(replace(one, is_quantizable=not matches(f".{one.name}", patterns)) for one in linears)

    experts = block.experts and replace(block.experts, linears=marked(block.experts.linears))
    return replace(block, linears=marked(block.linears), experts=experts)


def _layers(values: ModelConfig) -> int:
    """Return the number of blocks. Nemotron-H has a list of the blocks instead of their number."""
    pattern, kinds = values.get("hybrid_override_pattern"), values.get("layers_block_type")
    listed = kinds or pattern
    count = len(listed) if isinstance(listed, str | list) and listed else values.layers
    if count > _MAX_LAYERS:
        raise UnsupportedConfigError(f"num_hidden_layers in its config.json is more than {_MAX_LAYERS}")
    return count


def _contradiction(config: Mapping[str, Any], shape: ModelShape, found: int) -> str | None:
    """Return how the size of a base checkpoint contradicts its configuration. It may be more if parts are left out."""
    text = config.get("text_config") or config
    if config.get("quantization_config") or shape.stored_dtype is None:
        return None
    value = shape.value_bytes
    buffers = sum(count * (block.buffers * value + block.float32 * 4) for block, count in shape.counts)
    expected = shape.parameters * value + buffers
    head = shape.vocab_size * shape.embedding_size * value if shape.tied_embeddings else 0
    has_more = bool(shape.left_out) or bool(text.get(MORE_LAYERS))
    if found in (expected, expected + head) or (has_more and found > expected):
        return None  # some tools also save a tied head
    return f"its safetensors files have {found:,} bytes of tensors, but its config.json describes {expected:,}"
