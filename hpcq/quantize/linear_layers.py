"""Linear layers of a base checkpoint, by the names that they have in its files and in quantized checkpoints.

Their names come from a model without weights, except those of experts: transformers 5 has all experts of a layer in one
tensor, but checkpoints have one tensor per expert.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hpcq.catalog.ignored_layers import matches
from hpcq.catalog.safetensors_headers import TensorHeader, read_headers
from hpcq.catalog.unquantized_modules import unquantized_modules
from hpcq.core.errors import UserInputError
from hpcq.core.frozen import dataclass
from hpcq.core.sentences import listed
from hpcq.core.work_records import Scheme
from hpcq.quantize.coverage import module_counts

_WEIGHT = ".weight"
_EXPERTS = ".experts."


@dataclass(frozen=True, kw_only=True)
class LinearLayers:
    """Linear layers of a model.

    Attributes:
        quantized: Shape [outputs, inputs] of each layer that the scheme quantizes, by name.
        unquantized: Names of the layers that stay unquantized.
    """

    quantized: dict[str, tuple[int, int]]
    unquantized: tuple[str, ...]


def linear_layers(model: Any, base: Path, scheme: Scheme) -> LinearLayers:
    """Return the linear layers of `model`, of which `scheme` quantizes those in the blocks.

    Args:
        model: The unquantized model, with or without weights.
        base: Folder of its checkpoint.
        scheme: The scheme.

    Raises:
        UserInputError: It quantizes nothing, or experts that are in one tensor.
    """
    import torch

    head = model.get_output_embeddings()
    found = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    found |= _expert_layers(model, base)
    ignored = (*scheme.ignore, *unquantized_modules(model.config.to_dict()))
    quantized = {name: shape for name, shape in found.items() if not matches(name, ignored)}
    if not quantized:
        raise UserInputError(
            f"'{scheme.name}' quantizes nothing in '{model.config.model_type}': none of its {len(found)} linear layers "
            f"is outside {', '.join(ignored)}: evaluate it unquantized."
        )
    names = [name for name, module in model.named_modules() if module is head]
    return LinearLayers(quantized=quantized, unquantized=(*(name for name in found if name not in quantized), *names))


def check_reached(layers: LinearLayers, names: Iterable[str], tool: str) -> None:
    """Check, before hours of work, that a tool quantizes exactly the declared layers.

    Args:
        layers: The linear layers of the model.
        names: Names of the layers that the tool quantizes.
        tool: Name of the tool.

    Raises:
        UserInputError: It quantizes others.
    """
    declared, found = set(layers.quantized), set(names)
    if declared == found:
        return
    clauses = [f"{tool} quantizes {len(declared & found)} of the {len(declared)} linear layers of this model"]
    clauses += [f"not {listed(module_counts(declared - found))}"] if declared - found else []
    clauses += [f"but also {listed(module_counts(found - declared))}"] if found - declared else []
    raise UserInputError(f"{', '.join(clauses)}: choose a scheme of llmcompressor.")


def base_names(base: Path, layers: LinearLayers) -> dict[str, str]:
    """Return the name of the base checkpoint's tensor for each quantized layer. Old files omit a prefix.

    Raises:
        UserInputError: The base has no such tensor.
    """
    stored = {header.name for header in read_headers(base)}
    found: dict[str, str] = {}
    for name in layers.quantized:
        parts = f"{name}{_WEIGHT}".split(".")
        candidates = (".".join(parts[start:]) for start in range(len(parts) - 1))
        match = next((candidate for candidate in candidates if candidate in stored), None)
        if match is not None:
            found[name] = match
    missing = [name for name in layers.quantized if name not in found]
    if missing:
        raise UserInputError(
            f"{base}: its files have no tensor for {len(missing)} of {len(layers.quantized)} layers "
            f"({listed(missing)}): save the checkpoint again with save_pretrained of transformers."
        )
    return found


def _expert_layers(model: Any, base: Path) -> dict[str, tuple[int, int]]:
    """Return the matrices of single experts in the files of the base that the model has in one tensor."""
    own = {name for name, _ in model.named_parameters()}
    fused = any(_EXPERTS in f"{name}." and tensor.ndim > 2 for name, tensor in model.named_parameters())  # noqa: PLR2004
    if not fused:
        return {}
    found = {
        header.name: header.shape for header in read_headers(base) if _is_expert(header) and header.name not in own
    }
    if not found:
        raise UserInputError(
            f"{base}: all experts of a layer are in one tensor, for which there is no quantized format: evaluate it"
            " unquantized, or name a checkpoint that its publisher has quantized."
        )
    return {name.removesuffix(_WEIGHT): (shape[0], shape[1]) for name, shape in found.items()}


def _is_expert(header: TensorHeader) -> bool:
    return _EXPERTS in header.name and header.name.endswith(_WEIGHT) and len(header.shape) == 2  # noqa: PLR2004
