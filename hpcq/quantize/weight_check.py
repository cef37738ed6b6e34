"""Check of each weight of a quantized model: against its base, and again after the model was saved and loaded.

The log-likelihoods of a text show errors that affect the whole model. But one wrong layer of many can change them less
than the quantization does. Therefore every parameter W is compared individually. To avoid a second copy of the model,
only the product W·X is kept, where X is a fixed random matrix with a few columns. On average, the relative difference
of two such products is that of the two matrices W (for 100 rows, its standard error is below 10 %).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from hpcq.core.errors import UserInputError, WorkerError
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import Scheme
from hpcq.quantize.coverage import module_pattern

COLUMNS = 4
"""Number of columns of the random matrix X."""
SAVED_TOLERANCE = 0.01
"""Largest accepted relative difference of a parameter between the model in memory and the loaded checkpoint. Rounding
to bfloat16 causes at most 2**-8 (0.004)."""

ROUNDING_FACTOR = {"rtn": 1.5, "awq": 1.5, "gptq": 5.0, "smoothquant": 5.0}
"""By method: the largest accepted error of a quantized layer, as a multiple of the error of rounding to nearest with
the same scales. GPTQ has larger errors of the weights, because it minimizes the errors of the outputs."""
MAX_ROUNDING_ERROR = 0.9
"""Largest accepted relative error of a quantized layer, with every method. If all weights are zero the error is 1; with
unrelated weights of the same norm it is the square root of 2."""
_FLOAT_ERRORS = {8: 2**-4, 4: 2**-2}
"""Largest relative error of a normal number, by bits: E4M3 has 3 bits after the binary point, E2M1 has one."""

_QUANTIZATION_PARAMETERS = ("_scale", "_zero_point", "_g_idx", "_shape")


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Product of one parameter with random columns.

    Attributes:
        product: For a matrix: W·X, of shape [rows, COLUMNS]; for a vector: the vector itself. On the CPU, in float32.
        explained: Expected error of rounding to nearest with the layer's scales (Frobenius norm); None: the parameter
            is not quantized.
        zero_columns: Number of columns of a matrix that contain only zeros.
        columns: Number of columns of a matrix.
    """

    product: Any
    explained: float | None = None
    zero_columns: int = 0
    columns: int = 0


Projections = Mapping[str, Projection]
"""Projections of all parameters of a model, by name."""


def project(model: Any, *, rounded: bool = False) -> dict[str, Projection]:
    """Return the projections of all parameters and saved buffers of `model`.

    Args:
        model: The model.
        rounded: Whether to round the weights of layers with a quantization scheme first.
    """
    import torch

    with torch.no_grad():
        return {name: _projection(module, tensor, rounded=rounded) for name, module, tensor in _parameters(model)}


class WeightCheck:
    """Comparison of a model's weights before and after quantization.

    Args:
        model: The model before quantization.
        scheme: The scheme.

    Attributes:
        rounded: Projections of the quantized model; empty before `check_rounding`.
    """

    def __init__(self, model: Any, scheme: Scheme) -> None:
        self.rounded: Projections = {}
        self._base = project(model)
        self._scheme = scheme

    def take_base(self, model: Any) -> None:
        """Use the matrices of `model` as the base from now on, after a transform that does not change its outputs.

        Vectors are no longer compared, because llmcompressor (0.14) adds 1 to the norms of Gemma until its run ends.
        """
        self._base = {name: one for name, one in project(model).items() if one.columns}

    def check_rounding(self, model: Any) -> dict[str, Any]:
        """Check the weights of the quantized model; see `compare_rounded`."""
        self.rounded = project(model, rounded=True)
        return compare_rounded(self._base, self.rounded, self._scheme)


def compare_rounded(base: Projections, rounded: Projections, scheme: Scheme) -> dict[str, Any]:
    """Check that no parameter differs from that of the base by more than rounding with the layer's scales explains.

    Returns:
        Facts for the checkpoint's metadata: median and largest relative error of the quantized layers, the layer with
        the largest error, the number of inputs whose weights GPTQ has set to zero, and the number of all inputs.

    Raises:
        UserInputError: GPTQ has set all weights of a layer to zero, because the layer's calibration inputs are zero.
        WorkerError: A parameter is missing, or differs from that of the base by more than rounding explains.
    """
    errors: dict[str, float] = {}
    zeroed = inputs = 0
    factor = ROUNDING_FACTOR.get(scheme.method, max(ROUNDING_FACTOR.values()))
    for name, expected in base.items():
        found = rounded.get(name)
        if found is None:
            raise WorkerError(f"The quantization tool has removed {name}; nothing was committed.")
        error = relative_difference(expected.product, found.product)
        dead = max(0, found.zero_columns - expected.zero_columns)
        tolerance = SAVED_TOLERANCE
        if found.explained is not None:
            if dead == found.columns:
                raise UserInputError(
                    f"GPTQ has set all weights of {name.removesuffix('.weight')} to zero, because the calibration text "
                    "gives this layer only zeros as inputs: choose a scheme without calibration, such as fp8-dynamic."
                )
            size = float(expected.product.norm()) / math.sqrt(COLUMNS)
            explained = math.hypot(found.explained / size if size else 0.0, math.sqrt(dead / found.columns))
            tolerance = max(SAVED_TOLERANCE, min(MAX_ROUNDING_ERROR, factor * explained))
        if not error <= tolerance:  # true for NaN, too
            raise WorkerError(
                f"{name} is not that of the base model: it differs by {error:.2g} (relative), and rounding explains at "
                f"most {tolerance:.2g}; nothing was committed."
            )
        if found.explained is not None:
            errors[name] = error
            zeroed, inputs = zeroed + dead, inputs + found.columns
    ordered = sorted(errors, key=lambda name: errors[name])
    if not ordered:
        return {}
    return {
        "median_error": round(errors[ordered[len(ordered) // 2]], 6),
        "largest_error": round(errors[ordered[-1]], 6),
        "largest_error_in": ordered[-1].removesuffix(".weight"),
        "zeroed_inputs": zeroed,
        "inputs": inputs,
    }


def check_saved_weights(expected: Projections, model: Any) -> float:
    """Check that each parameter of a saved and loaded model is that of the model in memory.

    Args:
        expected: Projections of the quantized model in memory.
        model: The loaded model, with dequantized weights and unpacked experts.

    Returns:
        The largest relative difference.

    Raises:
        WorkerError: A parameter is missing or differs.
    """
    found = project(model)
    missing = [name for name in expected if name not in found]
    if missing:
        raise WorkerError(f"The saved checkpoint lacks {module_pattern(missing[0])}; nothing was committed.")
    differences = {name: relative_difference(one.product, found[name].product) for name, one in expected.items()}
    for name, difference in differences.items():
        if not difference <= SAVED_TOLERANCE:  # true for NaN, too
            raise WorkerError(
                f"The saved checkpoint is not the quantized model: {name} differs by {difference:.2g} (relative), and "
                f"rounding explains at most {SAVED_TOLERANCE}; nothing was committed."
            )
    return max(differences.values(), default=0.0)


def _parameters(model: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, module and tensor of each parameter and saved buffer, without scales and zero points."""
    for prefix, module in model.named_modules():
        unsaved = module._non_persistent_buffers_set  # noqa: SLF001  torch has no public list
        for name in (*module._parameters, *(one for one in module._buffers if one not in unsaved)):  # noqa: SLF001
            tensor = getattr(module, name)  # loads offloaded tensors
            if tensor is None or name.endswith(_QUANTIZATION_PARAMETERS) or not tensor.is_floating_point():
                continue
            yield f"{prefix}.{name}" if prefix else name, module, tensor


def _projection(module: Any, tensor: Any, *, rounded: bool) -> Projection:
    import torch
    from compressed_tensors.quantization.lifecycle.forward import forward_quantize

    if tensor.ndim < 2:  # noqa: PLR2004
        return Projection(product=tensor.detach().to("cpu", torch.float32, copy=True))
    explained, matrix = None, tensor
    scheme = getattr(module, "quantization_scheme", None)
    if rounded and scheme is not None and scheme.weights is not None and hasattr(module, "weight_scale"):
        matrix = forward_quantize(module, tensor, "weight", scheme.weights)
        explained = _explained_error(tensor, module.weight_scale, scheme.weights)
    matrix = matrix.flatten(0, -2).to(torch.float32)
    return Projection(
        product=projected(matrix),
        explained=explained,
        zero_columns=int((matrix == 0).all(dim=0).sum()),
        columns=matrix.shape[-1],
    )


def projected(matrix: Any) -> Any:
    """Return the product of a matrix in float32 with random columns, of shape [rows, COLUMNS], on the CPU."""
    return (matrix @ _columns(matrix.shape[-1]).to(matrix.device)).cpu()


@lru_cache(maxsize=32)
def _columns(width: int) -> Any:
    import torch

    return torch.randn(width, COLUMNS, generator=torch.Generator().manual_seed(width))


def _explained_error(weight: Any, scale: Any, arguments: Any) -> float:
    """Return the error of rounding to nearest. For integers, it is uniformly distributed within a quantization step."""
    if arguments.type == "float":
        return _FLOAT_ERRORS[arguments.num_bits] * float(weight.float().norm())
    step = float(scale.float().square().mean().sqrt())
    return step * math.sqrt(weight.numel() / 12)


def relative_difference(expected: Any, found: Any) -> float:
    """Return the relative difference in the Frobenius norm; 0 if both are zero."""
    if expected.shape != found.shape:
        return math.inf
    difference, size = float((found - expected).norm()), float(expected.norm())
    return difference / size if size else difference
