"""Weights that are offloaded to disk, in nameless files on the node's own disk: gone with the process, however it ends.

Knows accelerate's hooks (1.15) and how transformers (5.17) sets them up; must not know what is offloaded, or why.
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
def folder_on_node(wanted_bytes: int) -> Iterator[Path]:
    """A folder on the disk that TMPDIR names, else /tmp, with so much room, for as long as a model is loaded.

    Raises:
        StorageError: that disk has no room, or cannot be written.
    """
    cure = "name a larger disk of the node by TMPDIR (environments.NAME.variables in the profile)"
    try:
        made = tempfile.TemporaryDirectory(prefix="hpcq-offload-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StorageError(
            f"no folder for offloaded weights can be made ({error.strerror or error}): {cure}."
        ) from error
    with made as folder:
        free = shutil.disk_usage(folder).free
        if free < wanted_bytes:
            raise StorageError(
                f"{Path(folder).parent} has {free / _GIB:.1f} GiB left, and {wanted_bytes / _GIB:.1f} GiB of weights"
                f" are to lie there: {cure}."
            )
        yield Path(folder)


def bring_to_node(model: Any, folder: Path) -> None:
    """Copy every weight that the hooks of `model` would read from a file, a file a block.

    transformers points them to the checkpoint itself, which lies on a shared file system as a rule, and each pass reads
    them again. The files lose their names at once, and are reached by their descriptors until `model` is gone.

    Raises:
        StorageError: the disk filled up meanwhile.
    """
    descriptors: list[int] = []
    weakref.finalize(model, _close, descriptors)
    for loader in _loaders(model):
        blocks: dict[str, list[str]] = defaultdict(list)
        for name in loader.index:
            blocks[_block(name)].append(name)
        for names in blocks.values():
            tensors = {name: _read(loader.index[name], name) for name in names}
            path = folder / "block.safetensors"
            try:
                save_file(tensors, path)
            except SafetensorError as error:
                raise StorageError(f"{folder}: weights cannot be kept there ({error}).") from error
            descriptors.append(os.open(path, os.O_RDONLY))
            path.unlink()
            for name, tensor in tensors.items():
                loader.index[name] = {
                    "safetensors_file": f"/proc/self/fd/{descriptors[-1]}",
                    "weight_name": name,
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                }


def _loaders(model: torch.nn.Module) -> list[Any]:
    """What the hooks take weights from, each once."""
    found: dict[int, Any] = {}
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            weights = getattr(one, "weights_map", None)
            loader = getattr(weights, "dataset", weights)
            if getattr(loader, "index", None):
                found[id(loader)] = loader
    return list(found.values())


def _block(name: str) -> str:
    """The name up to its first number: 'model.layers.7'; of what has none, the module's."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdecimal()), len(parts) - 2)
    return ".".join(parts[: number + 1])


def _read(entry: dict[str, str], name: str) -> torch.Tensor:
    with safe_open(entry["safetensors_file"], framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(entry.get("weight_name", name))
    return tensor.to(getattr(torch, entry["dtype"])).contiguous() if "dtype" in entry else tensor


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
