"""What vLLM (0.32) does with a quantized checkpoint: its method, and the kernels of the model's linear layers."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hpcq.catalog.checkpoint_formats import CONFIG_FILE, find_declaration
from hpcq.catalog.hf_config import MORE_LAYERS, OTHER_PARTS, PREDICTION_PART
from hpcq.core.errors import UserInputError, WorkerError
from hpcq.core.work_records import EvaluateWork, Scheme
from hpcq.evaluate.backends.vllm.pickled_head import pickled_head_problem
from hpcq.verify.loaded_model import unexpected_names, unexpected_problem, zero_tensors

LOAD_FORMAT = "hpcq"
"""Name of the loader in checked_loading.py, which each worker registers."""
UNUSED = "hpcq_unused_tensors_of_files"
"""Attribute of a model that this loader has loaded: names of the tensors in the model's files that were not read."""

_HEADS = re.compile(r"(^|\.)(lm_head|embed_out|output|embed_tokens|embed_in|wte|word_embeddings)\.weight$")
_KV_CACHE_SCALE = re.compile(r"\.[qkv]_(scale|zero_point)$")
_INPUT_ORDER = ".g_idx"
_LAYER = re.compile(r"(^|\.)layers\.(\d+)\.")


def check_tensors(engine: Any, work: EvaluateWork) -> None:
    """Check that each tensor of the checkpoint was read by a worker, except those that no model of its family has.

    Raises:
        UserInputError: No worker has read a tensor, so the model differs from its files.
    """
    first, *others = (set(names) for names in engine.collective_rpc("hpcq_unused_tensors"))
    config, scheme = engine.vllm_config.model_config.hf_config, work.variant.scheme
    names = unexpected_names(
        first.intersection(*others),
        is_quantized=scheme.is_quantized,
        has_other_parts=any(hasattr(config, part) for part in OTHER_PARTS),
    )
    text = config.get_text_config()
    is_tied = bool(getattr(text, "tie_word_embeddings", False) or getattr(config, "tie_word_embeddings", False))
    is_head_unread = is_tied and any(map(_HEADS.search, names))
    if is_head_unread and (problem := pickled_head_problem(Path(work.checkpoint_path))):
        raise UserInputError(f"{work.checkpoint_path}: {problem}.")
    in_layers = [(layer[2], name[layer.end() :]) for name in names if (layer := _LAYER.search(name))]
    predicting = {number for number, part in in_layers if PREDICTION_PART.search(part)}
    names = [name for name in names if not _is_unread_by_design(name, text, is_tied, scheme, predicting)]
    zero = zero_tensors(Path(work.checkpoint_path), [name for name in names if name.endswith(".bias")])
    names = [name for name in names if name not in zero]
    if names:
        raise UserInputError(
            f"{work.checkpoint_path}: {unexpected_problem(names)}: copy or download the checkpoint again, or correct "
            "its config.json."
        )


def _is_unread_by_design(
    name: str,
    text_config: Any,
    is_tied: bool,  # noqa: FBT001
    scheme: Scheme,
    predicting: Collection[str],
) -> bool:
    """Whether vLLM (0.32) does not need the tensor `name`.

    They are a tied head, scales of an unquantized KV cache, GPTQ's order of inputs if it is the usual one, and layers
    for multi-token prediction, whose numbers are in `predicting`.
    """
    layer = _LAYER.search(name)
    count = int(getattr(text_config, "num_hidden_layers", 0) or 0)
    is_extra = layer is not None and layer[2] in predicting and int(layer[2]) >= count
    predicts_more = bool(getattr(text_config, MORE_LAYERS, 0))
    return (
        bool(is_tied and _HEADS.search(name))
        or bool(scheme.is_quantized and _KV_CACHE_SCALE.search(name))
        or (scheme.is_quantized and not scheme.activation_order and name.endswith(_INPUT_ORDER))
        or name.startswith("mtp.")
        or (is_extra and predicts_more)
    )


def describe_quantization(engine: Any, work: EvaluateWork) -> dict[str, str | int | float]:
    """Return vLLM's quantization method and kernels, for the provenance of responses; empty for unquantized files.

    Raises:
        WorkerError: The checkpoint is quantized, but vLLM computes no layer of it as quantized, or its variant is
            unquantized.
    """
    method = engine.vllm_config.model_config.quantization
    kernels = sorted({name for names in engine.collective_rpc("hpcq_kernels") for name in names})
    scheme, path = work.variant.scheme, work.checkpoint_path
    if method is not None and not scheme.is_quantized:
        raise WorkerError(
            f"{path}: vLLM loads it as {method}, but '{scheme.name}' is unquantized: name it in models.checkpoints of"
            " its base model, or set evaluate.backend = 'accelerate'."
        )
    requested = dict(work.options).get("linear_backend")
    classes = [one.lower() for name in kernels for one in name.split()]
    if requested is not None and not any(one.startswith(str(requested)) for one in classes):
        raise WorkerError(
            f"{path}: evaluate.engine.linear_backend = '{requested}' was requested, but vLLM computes with "
            f"{', '.join(kernels) or 'no quantized kernels'}: remove the key."
        )
    folder = Path(path)
    if method is None and not ((folder / CONFIG_FILE).is_file() and find_declaration(folder)):
        return {}  # a tool may store its weights unquantized
    if method is None or not kernels:
        raise WorkerError(
            f"{path}: vLLM computes no layer of it as quantized, but '{scheme.name}' is quantized: set"
            " evaluate.backend = 'accelerate'."
        )
    return {"quantization": str(method), "quantization_kernels": "; ".join(kernels)}
