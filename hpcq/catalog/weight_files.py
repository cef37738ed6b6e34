"""Files of a checkpoint folder from which weights are loaded, without copies in other formats."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

PICKLE_INDEX = "pytorch_model.bin.index.json"
_SINGLE_AND_INDEX = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", PICKLE_INDEX),
)
"""Names of transformers (5.17), in its order: a single file is loaded rather than those of an index."""
_OTHER_NAMES = ("*.safetensors", "*.bin")
"""Names that vLLM (0.32) loads too, in its order."""
_OF_A_TRAINING = ("training_args.bin", "optimizer.bin")
_COPIES = ("consolidated*", "adapter_*", *_OF_A_TRAINING, "scheduler.bin", "*.index.*")
"""The same weights in the format of Mistral or Meta, adapters, and files of a training."""
_SHARD = re.compile(r"-\d+-of-\d+\.")


def weight_files(folder: Path) -> list[Path]:
    """Return the files whose weights are loaded, sorted by name; empty if there are none.

    Files that an index names and that do not exist are left out.
    """
    for single, index in _SINGLE_AND_INDEX:
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return [folder / name for name in indexed_names(folder / index) if (folder / name).is_file()]
    return next((found for pattern in _OTHER_NAMES if (found := _without_copies(folder, pattern))), [])


def ambiguous_weights(folder: Path) -> str | None:
    """Return why two loaders may load different weights, and the fix, as the end of a sentence; None: they do not."""
    single, index = _SINGLE_AND_INDEX[0]
    if not (folder / single).is_file():
        return None
    if (folder / index).is_file() and single not in indexed_names(folder / index):
        return (
            f"has {single} and {index}, which names other files: transformers would load {single}, vLLM those files."
            " Move one of them to another folder."
        )
    return None


def weights_problem(folder: Path) -> str | None:
    """Return why transformers finds no weights in a folder, and the fix, as a clause; None: it finds some."""
    standard = [folder / name for names in _SINGLE_AND_INDEX for name in names]
    if any(path.is_file() or path.is_symlink() for path in standard):
        return None
    found = next((path.name for path in weight_files(folder)), None)
    if found is None:
        return f"it has no weights ({_SINGLE_AND_INDEX[0][0]}): copy or download it again"
    single, index = _SINGLE_AND_INDEX[found.endswith(".bin")]
    if _SHARD.search(found):
        return f"it has {found}, but no {index}: copy or download it again"
    return f"it has no {single}: rename {found} to {single}"


def unindexed_weights(folder: Path) -> tuple[str, ...]:
    """Return the files that vLLM (0.32) loads in addition to those that transformers loads.

    It ignores safetensors files that an index does not name; of PyTorch's files, it ignores only those of a training.
    """
    loaded = {path.name for path in weight_files(folder)}
    found = {path.name for path in folder.glob("*.safetensors")}
    if found:
        return () if (folder / _SINGLE_AND_INDEX[0][1]).is_file() else tuple(sorted(found - loaded))
    return tuple(sorted({path.name for path in folder.glob("*.bin")} - loaded - set(_OF_A_TRAINING)))


def indexed_names(index: Path) -> Sequence[str]:
    """Return the files that an index of shards names, sorted; empty if it cannot be read."""
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({name for name in names if isinstance(name, str)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()


def _without_copies(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if not any(fnmatchcase(path.name, copy) for copy in _COPIES))
