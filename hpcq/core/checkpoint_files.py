"""Names of the files of a checkpoint, in the folder of transformers: weights, and files that are copied with them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

_WEIGHT_SUFFIXES = (".safetensors", ".bin")
_OTHER_SUFFIXES = (".json", ".txt", ".jinja", ".model", ".tiktoken", ".spm", ".bpe", ".vocab", ".py")
_TEMPLATE_FOLDERS = ("additional_chat_templates", "chat_templates")
_INDEX_SUFFIX = ".index.json"
METADATA_FILE = "hpcq.json"
"""What hpcq writes into a checkpoint about its origin."""

_REPLACED = ("config.json", METADATA_FILE, "quantize_config.json", "quant_config.json", "params.json")
"""Files that are not copied: a quantized checkpoint has its own, or must not have them."""


def relevant_files(names: Iterable[str]) -> list[str]:
    """Return the files of a checkpoint that can change a result, sorted: weights, settings, tokenizer, templates, code.

    Only chat templates are read from folders; transformers (5.17) imports modules from a checkpoint's top folder only.

    Args:
        names: Paths in the checkpoint's folder.
    """
    return sorted(filter(_is_relevant, names))


def travelling_files(names: Iterable[str]) -> list[str]:
    """Return the files of a base checkpoint that are copied to its quantized checkpoints unchanged, sorted."""
    return [
        name
        for name in relevant_files(names)
        if not name.endswith((*_WEIGHT_SUFFIXES, _INDEX_SUFFIX)) and name not in _REPLACED
    ]


def files_in(folder: Path) -> list[str]:
    """Return the paths of the files in a folder and in its folders of chat templates, relative to it."""
    paths = [*folder.iterdir(), *(path for name in _TEMPLATE_FOLDERS for path in (folder / name).glob("*"))]
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]


def _is_relevant(name: str) -> bool:
    path = PurePosixPath(name)
    if len(path.parts) > 1:
        return path.parts[0] in _TEMPLATE_FOLDERS and path.suffix == ".jinja"
    return name.endswith((*_WEIGHT_SUFFIXES, *_OTHER_SUFFIXES))
