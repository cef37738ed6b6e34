"""Check of every quantized layer in the files of a checkpoint: its tensors, their types and shapes, scales and values.

The values are computed by the definition of the number format (`stored_formats`), and compared with the quantized model
in memory. transformers' own loading is compared with the same model elsewhere (`self_check`), so a checkpoint is read
by two computations that share no code.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hpcq.catalog.safetensors_headers import TensorHeader, headers_of
from hpcq.catalog.weight_files import weight_files
from hpcq.core.errors import WorkerError
from hpcq.core.work_records import Scheme
from hpcq.quantize.stored_formats import StoredLayerError, dequantize, layout_of
from hpcq.quantize.weight_check import SAVED_TOLERANCE, Projection, Projections, projected, relative_difference

_SCALE = ".weight_scale"
_NUMBERS = re.compile(r"(?<=\.)\d+(?=\.)")
"""Numbers of layer and expert in a name, but not that of Mixtral's w1."""
_WEIGHT = ".weight"

Stored = Mapping[str, tuple[Path, TensorHeader]]
"""File and header of each tensor, by name."""


def check_stored_layers(folder: Path, scheme: Scheme, expected: Projections) -> dict[str, Any]:
    """Check that the files have exactly the quantized layers of the model, in the scheme's format, with its weights.

    Args:
        folder: Folder of the checkpoint.
        scheme: How it is quantized.
        expected: Projections of the quantized model in memory.

    Returns:
        Facts for the checkpoint's metadata: number of layers, and their largest relative difference.

    Raises:
        WorkerError: A layer is missing, or is stored otherwise.
    """
    stored: Stored = {
        header.name: (path, header)
        for path in weight_files(folder)
        if path.suffix == ".safetensors"
        for header in headers_of(path)
    }
    layers = sorted(name.removesuffix(_SCALE) for name in stored if name.endswith(_SCALE))
    declared = {name: one for name, one in expected.items() if one.explained is not None}
    if len(layers) != len(declared):
        raise _error(f"has {len(layers)} quantized layers, not {len(declared)} as the quantized model")
    candidates = _Candidates(declared)
    largest = max((_check_layer(layer, stored, scheme, candidates) for layer in layers), default=0.0)
    return {"layers": len(layers), "largest_difference": round(largest, 6)}


class _Candidates:
    """Layers of the model that no stored layer was compared with yet.

    The names of experts differ between a family's checkpoints and the model. The numbers of layer and expert in them
    do not.
    """

    def __init__(self, layers: Mapping[str, Projection]) -> None:
        self._by_name = dict(layers)
        self._by_numbers: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for name in layers:
            self._by_numbers[tuple(_NUMBERS.findall(name))].append(name)

    def of(self, layer: str) -> list[str]:
        """Return the names of the model's layers that a stored layer may be, if its own name is unknown."""
        exact = layer + _WEIGHT
        return [exact] if exact in self._by_name else list(self._by_numbers[tuple(_NUMBERS.findall(layer))])

    def columns(self, name: str) -> tuple[int, int]:
        """Return outputs and inputs of a layer."""
        one = self._by_name[name]
        return int(one.product.shape[0]), one.columns

    def product(self, name: str) -> Any:
        """Return the projection of a layer."""
        return self._by_name[name].product

    def take(self, name: str) -> None:
        """Remove a layer."""
        self._by_numbers[tuple(_NUMBERS.findall(name))].remove(name)
        del self._by_name[name]


def _check_layer(layer: str, stored: Stored, scheme: Scheme, candidates: _Candidates) -> float:
    """Compare a stored layer with that of the model; return the relative difference."""
    problem = f"{layer} is no layer of the quantized model"
    nearest = None
    for name in candidates.of(layer):
        outputs, inputs = candidates.columns(name)
        layout = layout_of(scheme, outputs, inputs)
        if found := _layout_problem(layer, layout, stored):
            problem = found
            continue
        tensors = _read((f"{layer}.{part}" for part in layout), stored)
        try:
            weights = dequantize(scheme, tensors, outputs, inputs)
        except StoredLayerError as error:
            raise _error(f"is not valid: {layer}: {error}") from error
        difference = relative_difference(candidates.product(name), projected(weights))
        if nearest is None or difference < nearest[0]:
            nearest = difference, name
    if nearest is None:
        raise _error(f"is not in the format of '{scheme.name}': {problem}")
    difference, name = nearest
    if not difference <= SAVED_TOLERANCE:  # true for NaN, too
        raise _error(
            f"has other weights than the quantized model: by the definition of {scheme.weights}, {layer} differs by "
            f"{difference:.2g} (relative), and rounding explains at most {SAVED_TOLERANCE}"
        )
    candidates.take(name)
    return difference


def _layout_problem(layer: str, layout: Mapping[str, Any], stored: Stored) -> str | None:
    """Return which tensor of a layer is missing, superfluous, or has another type or shape; None: all are right."""
    for part, (dtypes, shape) in layout.items():
        name = f"{layer}.{part}"
        if name not in stored:
            return f"{name} is missing"
        header = stored[name][1]
        if header.dtype not in dtypes or header.shape != shape:
            wanted = f"{' or '.join(dtypes)} {list(shape)}"
            return f"{name} is {header.dtype} {list(header.shape)}, not {wanted}"
    parts = {name.removeprefix(f"{layer}.") for name in stored if name.startswith(f"{layer}.")}
    others = parts - layout.keys() - {"bias"}
    return f"{layer} also has {', '.join(sorted(others))}" if others else None


def _read(names: Iterable[str], stored: Stored) -> dict[str, Any]:
    """Return tensors by the last part of their names."""
    from safetensors import safe_open

    tensors = {}
    for name in names:
        with safe_open(stored[name][0], framework="pt") as file:
            tensors[name.rpartition(".")[2]] = file.get_tensor(name)
    return tensors


def _error(phrase: str) -> WorkerError:
    return WorkerError(f"The saved checkpoint {phrase}; nothing was committed.")
