"""Disk offload of weights, to unlinked files on the node's local disk that vanish with the process.

Uses accelerate's hooks (1.15), as transformers (5.17) sets them up.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hpcq.core.errors import StorageError

_GIB = 2**30


@contextlib.contextmanager
def offload_folder(required_bytes: int) -> Iterator[Path]:
    """Create a temporary folder under TMPDIR (default /tmp) with enough free space; remove it on exit.

    Raises:
        StorageError: the disk has too little free space, or cannot be written.
    """
    fix = "set TMPDIR to a larger disk of the node (environments.NAME.variables in the profile)"
    try:
        temporary = tempfile.TemporaryDirectory(prefix="hpcq-offload-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StorageError(
            f"the folder for offloaded weights cannot be created ({error.strerror or error}): {fix}."
        ) from error
    with temporary as folder:
        free = shutil.disk_usage(folder).free
        if free < required_bytes:
            raise StorageError(
                f"{Path(folder).parent} has {free / _GIB:.1f} GiB free, less than the {required_bytes / _GIB:.1f} GiB"
                f" of offloaded weights need: {fix}."
            )
        yield Path(folder)


def copy_weights_to_node(model: Any, folder: Path) -> None:
    """Copy every weight that the hooks of `model` read from a file to `folder`, one file per block.

    transformers points the hooks to the checkpoint itself, usually on a shared file system, and every pass reads it
    again. The copies are unlinked at once, and read through their descriptors until `model` is garbage-collected.

    Raises:
        StorageError: the disk is full.
    """
    descriptors: list[int] = []
    weakref.finalize(model, _close_all, descriptors)
    for loader in _weight_loaders(model):
        blocks: dict[str, list[str]] = defaultdict(list)
        for name in getattr(loader, "index", None) or ():
            blocks[_block_name(name)].append(name)
        for names in blocks.values():
            tensors = {name: _read_tensor(loader.index[name], name) for name in names}
            path = folder / "block.safetensors"
            try:
                save_file(tensors, path)
            except SafetensorError as error:
                raise StorageError(f"{folder}: offloaded weights cannot be written ({error}).") from error
            descriptors.append(os.open(path, os.O_RDONLY))
            path.unlink()
            for name, tensor in tensors.items():
                loader.index[name] = {
                    "safetensors_file": f"/proc/self/fd/{descriptors[-1]}",
                    "weight_name": name,
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                }


def offloaded_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield names and values of the weights that the hooks of `model` load from host memory or files."""
    for loader in _weight_loaders(model):
        yield from ((name, loader[name]) for name in loader)


def _weight_loaders(model: torch.nn.Module) -> list[Any]:
    """Return the mappings from which the hooks load weights, each once."""
    found: dict[int, Any] = {}
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            weights = getattr(one, "weights_map", None)
            loader = getattr(weights, "dataset", weights)
            if loader is not None:
                found[id(loader)] = loader
    return list(found.values())


def _block_name(name: str) -> str:
    """Return the name up to its first number, like 'model.layers.7'; the module's name if there is no number."""
    parts = name.split(".")
    last = next((index for index, part in enumerate(parts) if part.isdecimal()), len(parts) - 2)
    return ".".join(parts[: last + 1])


def _read_tensor(entry: dict[str, str], name: str) -> torch.Tensor:
    with safe_open(entry["safetensors_file"], framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(entry.get("weight_name", name))
    return tensor.to(getattr(torch, entry["dtype"])).contiguous() if "dtype" in entry else tensor


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
