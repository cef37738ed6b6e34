"""Checkpoints that others quantized (`models.checkpoints`): where they are, what they declare, whether they match.

A checkpoint on the hub can be looked up when its commit is pinned and its configuration is on this file system.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcq.catalog.checkpoint_formats import (
    CONFIG_FILE,
    CheckpointFormatError,
    check_other_files,
    checkpoint_scheme,
    find_declaration,
)
from hpcq.catalog.checkpoint_problems import missing_config
from hpcq.catalog.config_differences import config_differences
from hpcq.catalog.hf_config import read_checkpoint_shape
from hpcq.catalog.model_config import UnsupportedConfigError
from hpcq.catalog.model_shape import Block, ModelShape
from hpcq.catalog.safetensors_headers import read_headers
from hpcq.catalog.weight_files import ambiguous_weights
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import Scheme
from hpcq.manifest.fs_access import is_file, is_folder, unreadable_part
from hpcq.manifest.value_origin import KeyPath

_FOLDER_PREFIXES = ("/", "./", "../", "~")
_COMPARED_SIZES = ("layers", "hidden_size", "vocab_size")
_COMPARED_KEYS = {
    "model_type": "model_type",
    "num_hidden_layers": "layers",
    "hidden_size": "hidden_size",
    "vocab_size": "vocab_size",
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
_TEMPLATE_FILES = ("chat_template.jinja",)
_NOT_QUANTIZED = " is not quantized: its config.json has no quantization_config. Give it as a model of its own."
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True, kw_only=True)
class PinnedFolder:
    """Folder of a checkpoint on the hub at one commit.

    Attributes:
        revision: The commit.
        folder: Folder of its files, some of which may be missing.
    """

    revision: str
    folder: Path


PinnedFolders = Mapping[str, PinnedFolder]
"""Pinned checkpoints by the text in the manifest ('org/name' or 'org/name@revision')."""


@dataclass(frozen=True, kw_only=True)
class NamedCheckpoint:
    """A checkpoint that the manifest names.

    Attributes:
        key_path: Key of the text.
        text: The text in the manifest.
        id: Id on the hub; for a folder, its absolute path.
        revision: Commit on the hub; None for a folder, or if it is not pinned yet.
        folder: Its folder, which may not exist yet; None if the commit is not known.
        scheme: What it declares; None if it is unknown.
        shape: Its sizes; None if they are unknown.
        problem: Why it cannot be evaluated, as what follows its name in a sentence; None: it can, or is not staged yet.
        notes: Remarks for readers of the scores.
        stored_bytes: Bytes of its tensors, from the headers of its files; None: unknown.
    """

    key_path: KeyPath
    text: str
    id: str
    revision: str | None = None
    folder: Path | None = None
    scheme: Scheme | None = None
    shape: ModelShape | None = None
    problem: str | None = None
    notes: tuple[str, ...] = ()
    stored_bytes: int | None = None

    @property
    def is_on_hub(self) -> bool:
        """Whether the text is an id on the hub."""
        return not is_folder_text(self.text)


def is_folder_text(text: str) -> bool:
    """Return whether a text in `checkpoints` is a folder; other texts are ids on the hub."""
    return text.startswith(_FOLDER_PREFIXES)


def named_checkpoint(
    key_path: KeyPath,
    text: str,
    folder: Path,
    base: ModelShape | None,
    base_folder: Path | None,
    snapshots: PinnedFolders,
) -> NamedCheckpoint:
    """Look up one checkpoint.

    Args:
        key_path: Key of the text.
        text: The text in the manifest.
        folder: The text as a folder.
        base: Sizes of the base checkpoint; None: unknown.
        base_folder: Folder of the base checkpoint, which may not exist; None: unknown.
        snapshots: Checkpoints on the hub whose commit is known.
    """
    if is_folder_text(text):
        named = NamedCheckpoint(key_path=key_path, text=text, id=str(folder), folder=folder)
        origin = folder.name
    else:
        snapshot, repository = snapshots.get(text), text.partition("@")[0]
        origin = repository.partition("/")[0]
        named = NamedCheckpoint(key_path=key_path, text=text, id=repository)
        if snapshot is not None:
            named = replace(named, revision=snapshot.revision, folder=snapshot.folder)
    if named.folder is None or not is_folder(named.folder):
        return named
    problem = _folder_problem(named.folder, is_staged=not named.is_on_hub)
    if problem:
        return replace(named, problem=f" {problem}")
    try:
        declaration = find_declaration(named.folder)
        if declaration is None:
            return replace(named, problem=_NOT_QUANTIZED)
        scheme = checkpoint_scheme(declaration, origin)
        check_other_files(named.folder, declaration)
    except CheckpointFormatError as error:
        return replace(named, problem=f": {error}")
    named = _compared(replace(named, scheme=scheme), named.folder, base, base_folder)
    ambiguous = None if named.problem or named.folder is None else ambiguous_weights(named.folder)
    return replace(named, problem=f" {ambiguous}") if ambiguous else named


def _folder_problem(folder: Path, *, is_staged: bool) -> str | None:
    """Return why the folder is not a checkpoint; of one on the hub, only the configuration may be staged."""
    unreadable = unreadable_part(folder / CONFIG_FILE)
    if unreadable:
        return f"cannot be read: no permission for {unreadable}."
    if not is_file(folder / CONFIG_FILE):
        return missing_config(folder)
    if is_staged and not any(is_file(folder / name) for name in _TOKENIZER_FILES):
        return "has no tokenizer: copy the tokenizer files of its base model into the folder."
    if not any(True for pattern in _WEIGHTS for _ in folder.glob(pattern)):
        other = next((path.name for path in sorted(folder.glob("*.safetensors"))), None)
        return f"has no model.safetensors: rename {other} to model.safetensors." if other else None
    return None


def _compared(
    named: NamedCheckpoint, folder: Path, base: ModelShape | None, base_folder: Path | None
) -> NamedCheckpoint:
    """Return the checkpoint after a comparison of its sizes and its tokenizer with the base checkpoint's."""
    has_base = base_folder is not None and is_file(base_folder / CONFIG_FILE)
    try:
        shape = read_checkpoint_shape(folder)
    except UnsupportedConfigError:
        shape = None
    if base and shape:
        differences = [*_size_differences(shape, base)]
    elif has_base and base_folder:
        differences = [*_key_differences(_json(folder / CONFIG_FILE), _json(base_folder / CONFIG_FILE))]
    else:
        differences = []
        note = "it was not compared with its base model, whose sizes are unknown."
        named = replace(named, notes=(f"{named.text}: {note}",))
    named = replace(named, shape=shape)
    if differences:
        return replace(named, problem=f" is not a checkpoint of this model: {', '.join(differences)}.")
    if has_base and base_folder:
        notes = (*_tokenizer_notes(named.text, folder, base_folder), *_config_notes(named.text, folder, base_folder))
        named = replace(named, notes=(*named.notes, *notes))
    try:
        stored_bytes = sum(header.bytes for header in read_headers(folder))
    except FileNotFoundError as error:
        missing = f": {Path(error.filename).name}, which its index names, is missing: copy or download it again."
        return named if named.is_on_hub else replace(named, problem=missing)
    except (OSError, ValueError, KeyError) as error:
        return replace(named, problem=f": its weights cannot be read ({error}).")
    return replace(named, stored_bytes=stored_bytes or None)


def _size_differences(shape: ModelShape, base: ModelShape) -> Iterator[str]:
    if base.architecture and shape.architecture and shape.architecture != base.architecture:
        yield f"its architecture is {shape.architecture}, not {base.architecture}"
    for name in _COMPARED_SIZES:
        own, expected = getattr(shape, name), getattr(base, name)
        if own != expected:
            yield f"its {name} is {own}, not {expected}"
    own_blocks, base_blocks = ([*map(_without_window, one.blocks)] for one in (shape, base))
    if shape.layers == base.layers and own_blocks != base_blocks:
        named = [*config_differences(shape.config, base.config, has_sizes=True)] if base.config else []
        yield from named or ["its layers have other sizes"]


def _without_window(block: Block) -> Block:
    """Return the block without the window of its attention, which changes no weight."""
    return replace(block, attention=block.attention and replace(block.attention, window=None))


def _key_differences(config: Mapping[str, Any], base: Mapping[str, Any]) -> Iterator[str]:
    """Compare configurations of families whose sizes hpcq does not know."""
    for key, title in _COMPARED_KEYS.items():
        if config.get(key) != base.get(key):
            yield f"its {title} is {config.get(key)}, not {base.get(key)}"


def _tokenizer_notes(text: str, folder: Path, base_folder: Path) -> Iterator[str]:
    names = (*_TOKENIZER_FILES, *_TEMPLATE_FILES)
    present = [name for name in names if is_file(folder / name) and is_file(base_folder / name)]
    differing = [name for name in present if _content(folder / name) != _content(base_folder / name)]
    if differing:
        files = ", ".join(differing)
        yield f"{text}: its tokenizer differs from its base model's ({files}): prompts may have other tokens."


def _config_notes(text: str, folder: Path, base_folder: Path) -> Iterator[str]:
    configs = [_json(one / CONFIG_FILE) for one in (folder, base_folder)]
    differences = [*config_differences(*configs)] if all(isinstance(one, dict) for one in configs) else []
    if differences:
        settings = ", ".join(differences)
        cause = "its config.json has other settings than its base model's"
        yield f"{text}: {cause}: {settings}. Its scores may differ for this reason."


def _content(path: Path) -> object:
    """Return the content of a file for a comparison; layout and order of keys in JSON are ignored."""
    return _json(path) if path.suffix == ".json" else path.read_bytes()


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
