"""Code of a checkpoint (`auto_map`), which must be in its own folder: code of another repository is not pinned."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpcq.catalog.toml_rows import catalog_rows

MODEL_TYPES_FILE = "model_types.toml"
_TOKENIZER_FILE = "tokenizer_config.json"
_FILES = ("config.json", _TOKENIZER_FILE)
_USED_CLASSES = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
_REPOSITORY_END = "--"
"""transformers (5.17) loads 'org/name--module.Class' from the branch main of that repository."""


def code_problem(folder: Path) -> str | None:
    """Return which code of a checkpoint with `trust_remote_code` is not in its folder, and the fix, as a clause."""
    return next(_problems(folder), None)


def model_types() -> frozenset[str]:
    """Return the values of `model_type` that transformers knows, so that a checkpoint needs no own code."""
    return known_names("model_types")


def known_names(kind: str) -> frozenset[str]:
    """Return the names of a kind that transformers knows: 'model_types', 'rope_types' or 'activations'."""
    return frozenset(catalog_rows(MODEL_TYPES_FILE)[kind])


def has_own_code(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json names own code that makes the configuration and the model."""
    named = config.get("auto_map")
    return isinstance(named, Mapping) and all(key in named for key in ("AutoConfig", "AutoModelForCausalLM"))


def auto_map_problem(folder: Path) -> str | None:
    """Return which entry of an `auto_map` is no name of a class, which transformers cannot read, and the fix."""
    for name in _FILES:
        for key, value in _entries(folder / name):
            entries = value if isinstance(value, list) else [value]
            if any(one is not None and (not isinstance(one, str) or not one) for one in entries):
                return f"auto_map in {name} has {value!r} for {key}: correct or remove the entry"
    return None


def has_own_tokenizer(folder: Path) -> bool:
    """Return whether tokenizer_config.json names own code that makes the tokenizer."""
    return any(key == _USED_CLASSES[-1] and value for key, value in _entries(folder / _TOKENIZER_FILE))


def _problems(folder: Path) -> Iterator[str]:
    for name in _FILES:
        for reference in _references(folder / name):
            repository, separator, class_name = reference.rpartition(_REPOSITORY_END)
            if separator:
                yield (
                    f"auto_map in {name} names code of another repository ({reference}), which is neither pinned nor"
                    f" staged: copy the *.py files of {repository} into a folder with this model, and replace the name"
                    f" by '{class_name}'"
                )
            file = f"{class_name.rpartition('.')[0]}.py"
            if not separator and not (folder / file).is_file():
                yield f"it has no {file}, which auto_map in {name} names: copy the file into the folder"


def _references(path: Path) -> Iterator[str]:
    """Yield the names of classes in the `auto_map` of a file. A tokenizer has a list: the slow and the fast class."""
    for _, value in _entries(path):
        yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str))


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the entries of the `auto_map` of a file by their keys. Old files have a list of a tokenizer's classes."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    named: Any = content.get("auto_map") if isinstance(content, dict) else None
    if isinstance(named, Mapping):
        yield from ((key, named[key]) for key in _USED_CLASSES if key in named)
    elif isinstance(named, list):
        yield _USED_CLASSES[-1], named
