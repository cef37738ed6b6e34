"""Coverage of a quantization: which linear layers are quantized, compared with what the scheme declares.

A recipe whose targets match nothing, or not the experts, gives a checkpoint that loads and scores well, because it is
not quantized. So the modules are counted after the quantization, and nothing is committed if they differ.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from hpcq.catalog.ignored_layers import ignore_problem, matches
from hpcq.catalog.unquantized_modules import unquantized_modules
from hpcq.core.errors import UserInputError, WorkerError
from hpcq.core.frozen import dataclass
from hpcq.core.sentences import listed
from hpcq.core.work_records import Scheme

MAX_UNDECLARED_SHARE = 0.02
"""Share of the parameters outside embeddings and head that may be in matrices that are not linear layers, such as those
of convolutions and states. Fused experts have most of a model's parameters."""

_HEAD = "lm_head"
_NUMBER = re.compile(r"\.\d+(?=\.|$)")


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a scheme quantizes in a model.

    Attributes:
        ignore: Patterns of the modules that stay unquantized: the scheme's, and those of the family.
        quantized: Names of the linear layers to quantize.
        unquantized: Names of the linear layers that stay unquantized.
    """

    ignore: tuple[str, ...]
    quantized: tuple[str, ...]
    unquantized: tuple[str, ...]


def declare(model: Any, scheme: Scheme) -> Declaration:
    """Return what `scheme` quantizes in `model`, whose experts are unpacked.

    Raises:
        UserInputError: It quantizes nothing, not most of the weights, or with an unsuitable group size.
    """
    import torch

    never = unquantized_modules(model.config.to_dict())
    ignore = (*scheme.ignore, *_head_names(model, scheme), *never)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    _check_ignored(model, scheme, [name for name in linears if not matches(name, never)])
    quantized = tuple(name for name in linears if not matches(name, ignore))
    if not quantized:
        raise UserInputError(
            f"'{scheme.name}' quantizes nothing in '{model.config.model_type}': none of its {len(linears)} linear "
            f"layers is outside {', '.join(ignore)}: evaluate it unquantized."
        )
    _check_group_size(scheme, {name: linears[name].in_features for name in quantized})
    _check_other_matrices(model, scheme, linears)
    return Declaration(
        ignore=ignore, quantized=quantized, unquantized=tuple(name for name in linears if name not in set(quantized))
    )


def use_plain_linears(model: Any, declaration: Declaration) -> None:
    """Replace layers of a subclass of Linear that are quantized by plain ones with the same weights.

    compressed-tensors 0.19 chooses a format by the exact class of a module, and saves Falcon's layers with zero points
    that no reader expects.
    """
    import torch

    for name in declaration.quantized:
        module = model.get_submodule(name)
        if type(module) is not torch.nn.Linear:
            plain = torch.nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
            plain.weight, plain.bias = module.weight, module.bias
            model.set_submodule(name, plain.train(module.training))


def _head_names(model: Any, scheme: Scheme) -> list[str]:
    """Return the names of the head, which families call differently, if the scheme ignores it by its usual name."""
    head = model.get_output_embeddings() if _HEAD in scheme.ignore else None
    return [name for name, module in model.named_modules() if module is head and name != _HEAD]


def _check_ignored(model: Any, scheme: Scheme, linears: Iterable[str]) -> None:
    """Refuse a list of ignored layers that does not fit the model, or leaves a tied head to be quantized."""
    head = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is head), None)
    problem = ignore_problem(scheme, linears, head=name)
    if problem:
        raise UserInputError(f"'{scheme.name}': ignore: for '{model.config.model_type}', {problem}")
    if not scheme.ignore and head is not None and head.weight is model.get_input_embeddings().weight:
        raise UserInputError(
            f"'{scheme.name}' would quantize the head of '{model.config.model_type}', which shares its weights with "
            f"the embeddings: set ignore = ['{_HEAD}']."
        )


def _check_group_size(scheme: Scheme, in_features: Mapping[str, int]) -> None:
    size = scheme.group_size if scheme.granularity == "group" else None
    indivisible = next((name for name, width in in_features.items() if size and width % size), None)
    if indivisible:
        raise UserInputError(
            f"'{scheme.name}' cannot quantize this model: {in_features[indivisible]} inputs of "
            f"{module_pattern(indivisible)} are not a multiple of {size}: choose a group size that divides them."
        )


def _check_other_matrices(model: Any, scheme: Scheme, linears: Mapping[str, Any]) -> None:
    """Refuse models with most weights in modules that are not linear layers, such as fused experts or Conv1D."""
    import torch

    small = (torch.nn.Embedding, torch.nn.Conv1d)
    matrices = {
        f"{name}.{attribute}": tensor.numel()
        for name, module in model.named_modules()
        if name not in linears and not isinstance(module, small)
        for attribute, tensor in module.named_parameters(recurse=False)
        if tensor.ndim > 1
    }
    inside = sum(module.weight.numel() for name, module in linears.items() if name != _HEAD)
    others = sum(matrices.values())
    if others > MAX_UNDECLARED_SHARE * (inside + others):
        raise UserInputError(
            f"'{scheme.name}' cannot quantize '{model.config.model_type}': {others / (inside + others):.0%} of its "
            f"weights are not in linear layers ({_patterns(matrices)}): choose another model."
        )


def check_coverage(model: Any, declaration: Declaration, scheme: Scheme) -> dict[str, Any]:
    """Check that exactly the declared modules are quantized, and return facts for the checkpoint's metadata.

    Args:
        model: The quantized model.
        declaration: What the scheme quantizes in it.
        scheme: How it is quantized.

    Raises:
        WorkerError: Others are quantized, or declared ones are not, or not with positive finite scales.
    """
    quantized = {name for name, module in model.named_modules() if _has_quantized_weights(module)}
    declared = set(declaration.quantized)
    missing, excess = sorted(declared - quantized), sorted(quantized - declared)
    if missing or excess:
        parts = [f"{len(quantized)} of {len(declared)} declared linear layers are quantized"]
        parts += [f"not {_patterns(missing)}"] if missing else []
        parts += [f"but also {_patterns(excess)}"] if excess else []
        raise WorkerError(f"The quantization tool did not do what the scheme declares: {', '.join(parts)}.")
    _check_scales(model, declaration.quantized)
    cached = _check_kv_cache(model, scheme)
    total = sum(tensor.numel() for tensor in _own_parameters(model))
    inside = sum(model.get_submodule(name).weight.numel() for name in quantized)
    return {
        "quantized_linears": len(quantized),
        "unquantized_linears": len(declaration.unquantized),
        "quantized_share_of_parameters": round(inside / total, 6),
        "quantized_modules": module_counts(quantized),
        "unquantized_modules": module_counts(declaration.unquantized),
        **({"kv_cache_layers": cached} if cached else {}),
    }


def _check_kv_cache(model: Any, scheme: Scheme) -> int:
    """Check that keys and values of all attention layers have their scales, if declared; return the number of layers.

    Raises:
        UserInputError: The model has no attention layers whose cache compressed-tensors (0.19) quantizes.
        WorkerError: A layer lacks its scales, or has scales that the scheme does not declare.
    """
    from compressed_tensors.quantization.lifecycle.initialize import is_cached_attention_module

    layers = {name for name, module in model.named_modules() if is_cached_attention_module(module)}
    quantized = {
        name for name, module in model.named_modules() if hasattr(module, "k_scale") and hasattr(module, "v_scale")
    }
    if scheme.kv_cache is not None and not layers:
        raise UserInputError(
            f"'{scheme.name}' quantizes the KV cache, but '{model.config.model_type}' has no attention layers with "
            "keys and values: choose another scheme."
        )
    wrong = sorted((layers if scheme.kv_cache is not None else set()) ^ quantized)
    if wrong:
        raise WorkerError(
            f"The quantization tool did not do what the scheme declares: scales of the KV cache are missing, or too "
            f"many, in {_patterns(wrong)}."
        )
    _check_scales(model, quantized)
    return len(quantized)


def _check_scales(model: Any, names: Iterable[str]) -> None:
    import torch

    for name in names:
        for attribute, scale in model.get_submodule(name).named_parameters(recurse=False):
            if attribute.endswith("_scale") and not bool((torch.isfinite(scale) & (scale > 0)).all()):
                raise WorkerError(
                    f"{attribute} of {name} is not a positive number: its weights or its calibration inputs are not "
                    "finite, or the calibration text does not reach this layer. Choose another calibration text."
                )


def module_counts(names: Iterable[str]) -> dict[str, int]:
    """Return the number of modules by pattern, sorted by pattern: {'model.layers.*.mlp.up_proj': 30}."""
    return dict(sorted(Counter(map(module_pattern, names)).items()))


def module_pattern(name: str) -> str:
    """Return a module's name with '*' in place of the numbers of layer and expert."""
    return _NUMBER.sub(".*", name)


def _has_quantized_weights(module: Any) -> bool:
    scheme = getattr(module, "quantization_scheme", None)
    return scheme is not None and scheme.weights is not None and hasattr(module, "weight_scale")


def _own_parameters(model: Any) -> Iterable[Any]:
    """Yield the model's weights, without scales and zero points."""
    return (
        tensor
        for name, tensor in model.named_parameters()
        if not name.endswith(("_scale", "_zero_point", "_g_idx", "_shape"))
    )


def _patterns(names: Iterable[str]) -> str:
    return listed(map(module_pattern, names))
