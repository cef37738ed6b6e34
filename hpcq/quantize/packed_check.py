"""Check of a saved GPTQ or AWQ checkpoint: its files are read, and compared with the scheme and with the base.

Tools return without an error although they skipped layers, or wrote other bits than asked for. So the saved tensors
count: every layer that the scheme names is quantized as declared, no other is, and the dequantized weights are those of
the base except for rounding. The formulas (packed_weights.py) are independent of the tools.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hpcq.catalog.checkpoint_formats import CheckpointFormat, CheckpointFormatError, checkpoint_scheme, find_declaration
from hpcq.catalog.safetensors_headers import files_of_tensors, read_headers
from hpcq.core.errors import WorkerError
from hpcq.core.frozen import dataclass
from hpcq.core.sentences import listed
from hpcq.core.work_records import Scheme
from hpcq.quantize.coverage import module_counts
from hpcq.quantize.linear_layers import LinearLayers

PARTS = ("qweight", "qzeros", "scales")
GROUP_INDEX = "g_idx"

MAX_ERROR_FACTOR = {"gptq": 5.0, "autoround": 5.0, "awq": 3.0}
"""By method: the largest accepted error of a layer, as a multiple of the error of rounding to nearest with the same
scales. GPTQ and AutoRound minimize the errors of the outputs; AWQ also clips weights."""
MAX_RELATIVE_ERROR = 0.9
"""Largest accepted relative error of a layer. If all weights are zero, it is 1."""
_COMPARED_FIELDS = ("checkpoint_format", "weights", "activations", "granularity", "group_size", "symmetric")
_FIT_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class PackedLayer:
    """A quantized layer of a checkpoint.

    Attributes:
        weight: The dequantized weight in float32, [outputs, inputs].
        step: Root of the mean square of its scales, with each scale counted once per weight.
    """

    weight: Any
    step: float


def read_packed_layers(folder: Path, scheme: Scheme, names: Mapping[str, object]) -> Iterator[tuple[str, PackedLayer]]:
    """Yield the layers of a checkpoint by name, one after the other.

    Raises:
        WorkerError: Tensors are missing, or their shapes or values contradict the declaration.
    """
    from hpcq.quantize.packed_weights import PackedWeightsError

    dequantize = _dequantizer(folder, scheme)
    for name in names:
        parts = _read_parts(folder, name)
        try:
            _check_scales(parts["scales"], may_be_negative=scheme.method == "autoround")
            weight = dequantize(parts)
        except PackedWeightsError as error:
            raise WorkerError(f"{name}: {error}; nothing was committed.") from error
        step = float(parts["scales"].float().square().mean().sqrt())
        yield name, PackedLayer(weight=weight, step=step)


def check_packed(
    folder: Path, scheme: Scheme, layers: LinearLayers, read_base: Callable[[str], Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check the saved checkpoint in `folder`.

    Args:
        folder: The checkpoint.
        scheme: The scheme.
        layers: The linear layers that must be quantized, and those that must not.
        read_base: Returns the weight of a layer of the base.

    Returns:
        Facts for the metadata: the coverage, and the errors of the weights.

    Raises:
        WorkerError: It is not what the scheme declares; the message has the layers.
    """
    _check_declaration(folder, scheme)
    _check_names(folder, layers)
    errors: dict[str, float] = {}
    weights = total = 0
    for name, layer in read_packed_layers(folder, scheme, layers.quantized):
        if tuple(layer.weight.shape) != layers.quantized[name]:
            raise WorkerError(
                f"{name}: the saved weight has the shape {tuple(layer.weight.shape)}, not {layers.quantized[name]}; "
                "nothing was committed."
            )
        errors[name] = _checked_error(name, layer, read_base(name), scheme)
        weights += layer.weight.numel()
    quantized = set(layers.quantized)
    total = weights + sum(
        math.prod(header.shape) for header in read_headers(folder) if header.name.rpartition(".")[0] not in quantized
    )
    ordered = sorted(errors, key=lambda name: errors[name])
    coverage = {
        "quantized_linears": len(quantized),
        "unquantized_linears": len(layers.unquantized),
        "quantized_share_of_parameters": round(weights / total, 6),
        "quantized_modules": module_counts(quantized),
        "unquantized_modules": module_counts(layers.unquantized),
    }
    return coverage, {
        "median_error": round(errors[ordered[len(ordered) // 2]], 6),
        "largest_error": round(errors[ordered[-1]], 6),
        "largest_error_in": ordered[-1],
    }


def _check_declaration(folder: Path, scheme: Scheme) -> None:
    """Compare the format that config.json declares with the scheme."""
    try:
        declaration = find_declaration(folder)
        declared = checkpoint_scheme(declaration, "") if declaration else None
    except CheckpointFormatError as error:
        raise WorkerError(f"The quantization tool wrote an unknown format: {error} Nothing was committed.") from error
    if declared is None:
        raise WorkerError("The quantization tool declares no quantization in config.json; nothing was committed.")
    fields = [*_COMPARED_FIELDS]
    if scheme.checkpoint_format == CheckpointFormat.GPTQ and scheme.method == "gptq":
        fields.append("activation_order")
    for field in fields:
        found, planned = getattr(declared, field), getattr(scheme, field)
        if field == "activation_order":
            found, planned = bool(found), bool(planned)
        if found != planned:
            raise WorkerError(
                f"The saved checkpoint declares {field} '{found}', but '{scheme.name}' has '{planned}'; nothing was "
                "committed."
            )


def _check_names(folder: Path, layers: LinearLayers) -> None:
    """Check that exactly the declared layers have packed weights."""
    stored = {header.name for header in read_headers(folder)}
    packed = {name.removesuffix(f".{PARTS[0]}") for name in stored if name.endswith(f".{PARTS[0]}")}
    declared = set(layers.quantized)
    missing, excess = sorted(declared - packed), sorted(packed - declared)
    unused = sorted(name for name in declared & packed if f"{name}.weight" in stored)
    if missing or excess or unused:
        clauses = [f"{len(packed & declared)} of {len(declared)} declared linear layers are quantized"]
        clauses += [f"not {listed(module_counts(missing))}"] if missing else []
        clauses += [f"but also {listed(module_counts(excess))}"] if excess else []
        clauses += [f"and {listed(module_counts(unused))} also have unquantized weights"] if unused else []
        raise WorkerError(
            f"The quantization tool did not do what the scheme declares: {', '.join(clauses)}; nothing was committed."
        )


def _read_parts(folder: Path, name: str) -> dict[str, Any]:
    from safetensors import safe_open

    parts: dict[str, Any] = {}
    for full, path in files_of_tensors(folder, [f"{name}.{part}" for part in (*PARTS, GROUP_INDEX)]).items():
        with safe_open(path, framework="pt") as file:
            parts[full.rpartition(".")[2]] = file.get_tensor(full)
    missing = [part for part in PARTS if part not in parts]
    if missing:
        raise WorkerError(f"{name}: {', '.join(missing)} is missing in the saved checkpoint; nothing was committed.")
    return parts


def _check_scales(scales: Any, *, may_be_negative: bool) -> None:
    """Check that scales are finite and positive. AutoRound uses the sign of a scale for the range from -8 to 7."""
    import torch

    from hpcq.quantize.packed_weights import PackedWeightsError

    valid = scales != 0 if may_be_negative else scales > 0
    if not bool((torch.isfinite(scales) & valid).all()):
        raise PackedWeightsError(
            "a scale is not a positive number, because weights or calibration inputs are not finite, or the calibration"
            " text does not reach this layer: choose another calibration text"
        )


def _dequantizer(folder: Path, scheme: Scheme) -> Callable[[Mapping[str, Any]], Any]:
    """Return the function that dequantizes the parts of a layer, and checks them against the declaration."""
    from hpcq.quantize.packed_weights import awq_weight, gptq_weight

    if scheme.checkpoint_format == CheckpointFormat.AWQ:
        return lambda parts: awq_weight(*_checked_parts(parts, scheme))
    declaration = find_declaration(folder)
    layout = declaration.settings.get("checkpoint_format") if declaration else None

    def dequantize(parts: Mapping[str, Any]) -> Any:
        qweight, qzeros, scales = _checked_parts(parts, scheme)
        return gptq_weight(
            qweight,
            qzeros,
            scales,
            parts.get(GROUP_INDEX),
            bits=int(scheme.weights.removeprefix("int")),
            is_v2=layout == "gptq_v2",
            is_symmetric=scheme.symmetric,
        )

    return dequantize


def _checked_parts(parts: Mapping[str, Any], scheme: Scheme) -> tuple[Any, Any, Any]:
    """Return the parts of a weight whose groups have as many inputs as the scheme says."""
    import torch

    from hpcq.quantize.packed_weights import PackedWeightsError

    is_gptq = scheme.checkpoint_format == CheckpointFormat.GPTQ
    rows = parts["qweight"].shape[0]
    inputs = rows * 32 // int(scheme.weights.removeprefix("int")) if is_gptq else rows
    size = scheme.group_size or inputs
    if parts["scales"].shape[0] != math.ceil(inputs / size):
        raise PackedWeightsError(
            f"it has {parts['scales'].shape[0]} groups of scales, not {math.ceil(inputs / size)} for {inputs} inputs"
        )
    tensors = (parts["qweight"], parts["qzeros"], parts["scales"])
    index = parts.get(GROUP_INDEX)
    if index is None:
        return tensors
    counts = torch.bincount(index.long(), minlength=parts["scales"].shape[0])
    if index.shape[0] != inputs or counts.shape[0] != parts["scales"].shape[0] or int(counts.max()) > size:
        raise PackedWeightsError(f"g_idx does not have groups of {size} inputs")
    in_order = torch.equal(index.long(), torch.arange(inputs, device=index.device) // size)
    if not in_order and not scheme.activation_order:
        raise PackedWeightsError("g_idx orders inputs by activation, which the scheme does not declare")
    return tensors


def _checked_error(name: str, layer: PackedLayer, base: Any, scheme: Scheme) -> float:
    """Return the relative error of a layer, which rounding with its scales must explain."""
    base = base.float()
    if scheme.checkpoint_format == CheckpointFormat.AWQ and scheme.method == "awq":
        base = scaled_to(base, layer.weight)
    size = float(base.norm())
    error = float((layer.weight - base).norm()) / size if size else float(layer.weight.norm())
    explained = layer.step * math.sqrt(base.numel() / 12) / size if size else 0.0
    tolerance = min(MAX_RELATIVE_ERROR, MAX_ERROR_FACTOR.get(scheme.method, 5.0) * explained)
    if not error <= tolerance:  # true for NaN, too
        raise WorkerError(
            f"{name} is not that of the base model: it differs by {error:.2g} (relative), and rounding explains at "
            f"most {tolerance:.2g}; nothing was committed."
        )
    return error


def scaled_to(weight: Any, target: Any) -> Any:
    """Return `weight` with its rows and columns scaled as in `target`, by alternating least squares.

    AWQ multiplies the columns of a layer, and divides the rows of the layer before it, by the same numbers. These are
    not stored. The check of the log-likelihoods shows whether they cancel.

    Args:
        weight: Weight of the base, [outputs, inputs].
        target: Dequantized weight of the checkpoint.
    """
    import torch

    rows = torch.ones(weight.shape[0], 1, device=weight.device)
    columns = torch.ones(1, weight.shape[1], device=weight.device)
    tiny = torch.finfo(torch.float32).tiny
    for _ in range(_FIT_STEPS):
        scaled = weight * rows
        columns = (target * scaled).sum(0, keepdim=True) / scaled.square().sum(0, keepdim=True).clamp(min=tiny)
        scaled = weight * columns
        rows = (target * scaled).sum(1, keepdim=True) / scaled.square().sum(1, keepdim=True).clamp(min=tiny)
    return weight * rows * columns
