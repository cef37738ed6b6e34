"""Checks of a base checkpoint before it is loaded: it is the planned one, complete, and can be quantized.

Reads names, sizes and JSON files, but no weights: a check takes milliseconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcq.catalog.hf_config import find_config_shape
from hpcq.catalog.schemes import group_size_problem
from hpcq.catalog.tool_limits import width_problem
from hpcq.catalog.unquantized_modules import quantization_problem
from hpcq.catalog.weight_files import weights_problem
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.hub_cache import HubCache, RepoKind, hub_cache
from hpcq.core.snapshot_marker import read_snapshot_marker
from hpcq.core.work_records import Model, Scheme, Variant
from hpcq.verify.checkpoint_files import check_files, check_unchanged

_COMMIT = re.compile(r"[0-9a-f]{40}")
_RESTAGE = "run 'hpcq stage MANIFEST' again"


def check_base(variant: Variant) -> None:
    """Check that the base checkpoint is the planned one, and that the scheme can quantize it.

    Raises:
        SetupError: It is not staged, incomplete, or not the planned one.
        UserInputError: It cannot be quantized, or not with this scheme.
    """
    model, scheme = variant.model, variant.scheme
    base = _staged_folder(model)
    if not (base / "config.json").is_file():
        raise SetupError(f"{base}: config.json of {model.id} is missing: stage the manifest, or correct models.path.")
    _check_identity(model, base)
    _check_files(model, base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        raise UserInputError(
            f"'{scheme.name}' cannot quantize {model.id}: {base} is already quantized: name an unquantized checkpoint."
        )
    problem = quantization_problem(config, scheme)
    if problem:
        raise UserInputError(f"'{scheme.name}' cannot quantize {model.id}: {problem}.")
    check_group_size(scheme, config, model.id)


def check_group_size(scheme: Scheme, config: Mapping[str, Any], model_name: str) -> None:
    """Check that the group size of `scheme` divides the inputs of every linear layer.

    A configuration that the catalog cannot parse, because its family is unknown, passes.

    Args:
        scheme: Any scheme; without groups it passes.
        config: Content of the base checkpoint's config.json.
        model_name: Id or path of the model, for the message.

    Raises:
        UserInputError: The inputs of a layer are not a multiple of the group size.
    """
    shape = find_config_shape(config.get("text_config") or config)
    if shape and (too_narrow := width_problem(scheme, shape)):
        raise UserInputError(f"'{scheme.name}' cannot quantize {model_name}: {too_narrow}.")
    problem = group_size_problem(scheme, shape) if shape else None
    if problem:
        raise UserInputError(problem.sentence(model_name, names_layer=True))


def _staged_folder(model: Model) -> Path:
    """Return the model's folder. A model without one is an error: no other folder is searched."""
    if not model.path:
        raise SetupError(f"{model.id} has no folder, because it is not staged: run 'hpcq stage MANIFEST'.")
    return Path(model.path)


def _check_identity(model: Model, base: Path) -> None:
    """Check a snapshot of the hub by its commit and marker, and another folder by its digest if that is known."""
    if model.revision and _COMMIT.fullmatch(model.revision) and base.parent.name == "snapshots":
        if base.name != model.revision:
            raise SetupError(
                f"{base}: this is commit {base.name[:12]} of {model.id}, but the run was planned with "
                f"{model.revision[:12]}: submit the manifest again."
            )
        _check_marker(model, base)
    check_unchanged(base, name=model.id, digest=model.digest)


def _check_marker(model: Model, base: Path) -> None:
    """Check that the snapshot is complete, and that its files have the sizes that they were staged with."""
    marker = _marker(model, base)
    try:
        files = read_snapshot_marker(marker).files
    except FileNotFoundError:
        raise SetupError(f"{base}: {model.id} is not completely staged (no {marker}): {_RESTAGE}.") from None
    except ValueError:
        raise SetupError(f"{marker}: the completion marker of {model.id} is damaged: {_RESTAGE}.") from None
    for file in files:
        path = base / file.path
        found = path.stat().st_size if path.is_file() else None
        if found != file.size:
            described = "is missing" if found is None else f"has {found} bytes"
            raise SetupError(f"{path}: it {described}, but was staged with {file.size}: {_RESTAGE}.")


def _marker(model: Model, base: Path) -> Path:
    """Return the completion marker next to the hub's cache that has the snapshot, else that of the environment."""
    hub = base.parents[2]
    caches = (HubCache(hub=hub, prepared=hub.parent / "hpcq"), hub_cache())
    markers = [cache.marker(RepoKind.MODEL, model.id, str(model.revision)) for cache in caches]
    return next((marker for marker in markers if marker.is_file()), markers[0])


def _check_files(model: Model, base: Path) -> None:
    problem = weights_problem(base)
    if problem:
        raise SetupError(f"{base}: {problem}.")
    check_files(base, trust_remote_code=model.trust_remote_code)
