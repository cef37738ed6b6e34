"""Damage that names, sizes and headers of a checkpoint's files show, and a head that differs from tied embeddings."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hpcq.catalog.checkpoint_formats import CheckpointFormatError, find_declaration
from hpcq.catalog.hf_config import MORE_LAYERS, PREDICTION_PART
from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.safetensors_headers import INDEX_FILE, SINGLE_FILE, TensorHeader, headers_of
from hpcq.catalog.tensor_shapes import shape_problem, type_problem
from hpcq.catalog.tokenizer_file import TOKENIZER_FILE, read_tokenizer
from hpcq.catalog.weight_files import PICKLE_INDEX, indexed_names, weight_files, weights_problem
from hpcq.core.sentences import listed

_INDEXES = (INDEX_FILE, PICKLE_INDEX)
_JSON_FILES = ("config.json", "tokenizer_config.json", TOKENIZER_FILE, "special_tokens_map.json", *_INDEXES)
_POINTER = b"version https://git-lfs.github.com/spec/"
_DOWNLOAD = "copy or download it again"
_COPY_TOKENIZER = "copy the model's tokenizer files"
NO_TOKENIZER = "it has no tokenizer: copy the model's tokenizer files into the folder"
ADAPTER_FILE = "adapter_config.json"
IS_ADAPTER = f"is an adapter ({ADAPTER_FILE}), not a model: merge it into its base model, and use the result."
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_SMALLEST_PICKLE = 1024
"""Bytes; the file of one tensor is longer."""
_LFS = "run 'git lfs pull' in the folder"
EMBEDDING = re.compile(r"(^|\.)(embed_tokens|tok_embeddings|embed_in|wte|word_embeddings)\.weight$")
HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.(weight|qweight|weight_packed)$")
_TOKENIZER = re.compile(
    r"tokenizer\.(json|model.*)|vocab\..*|merges\.txt|tekken\.json|tokenization.*\.py"
    r"|.*\.(model|tiktoken|spm|bpe|vocab)"
)
_EXPERT = re.compile(r"^(?P<before>.*\.experts\.)(?P<number>\d+)\.(?P<after>.*)$")
_BLOCK_BYTES = 2**24
"""Number of bytes of two tensors that are compared at once."""


def file_problem(folder: Path, *, is_complete: bool) -> str | None:
    """Return which file of a checkpoint is damaged, and the fix, as a clause; None: none is damaged.

    Args:
        folder: Folder of the checkpoint.
        is_complete: Whether all files that the index of its shards names must exist.
    """
    return next(_file_problems(folder, is_complete=is_complete), None)


def content_problem(folder: Path, shape: ModelShape | None) -> str | None:
    """Return how the files contradict each other, and the fix, as a clause; None: they agree or cannot be read.

    Args:
        folder: Folder of a checkpoint for which `file_problem` returns None.
        shape: What its config.json describes; None: the family is unknown.
    """
    try:
        files = _weight_files(folder)
        headers = [header for path in files if path.is_file() for header in headers_of(path)]
    except (OSError, ValueError):
        return None
    return next(_content_problems(folder, headers, shape), None)


def absence_problem(folder: Path) -> str | None:
    """Return what a complete checkpoint lacks, or has in addition, and the fix, as a clause; None: nothing."""
    problem = weights_problem(folder)
    if problem is None and not has_tokenizer(folder):
        problem = NO_TOKENIZER
    if problem is None and (folder / ADAPTER_FILE).exists():
        problem = (
            f"it has {ADAPTER_FILE}, so that transformers also loads the adapter if peft is installed: move adapter_* "
            "to another folder, or give a checkpoint into which the adapter was merged"
        )
    return problem


def missing_config(folder: Path) -> str:
    """Return why a folder without config.json is not a checkpoint, and the fix, as the end of a sentence."""
    if (folder / ADAPTER_FILE).is_file():
        return IS_ADAPTER
    return f"is not a checkpoint: {folder / 'config.json'} is missing. Copy or download it, or correct the path."


def is_adapter(folder: Path) -> bool:
    """Return whether a folder with a config.json has the weights of an adapter (of PEFT), and none of a model."""
    return (folder / ADAPTER_FILE).is_file() and not weight_files(folder)


def has_tokenizer(folder: Path) -> bool:
    """Return whether a checkpoint has a vocabulary, or code of a tokenizer; tokenizer_config.json is neither."""
    return any(_TOKENIZER.fullmatch(path.name) for path in folder.iterdir())


def head_problem(folder: Path, shape: ModelShape | None) -> str | None:
    """Return how a stored head differs from the embeddings to which it is tied, and the fix; None: it does not.

    If they differ, transformers (5.17) uses the stored head, and vLLM (0.32) the embeddings. Both tensors are read.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is not a safetensors file.
    """
    if shape is None or not shape.tied_embeddings:
        return None
    stored = [(path, header) for path in _weight_files(folder) for header in headers_of(path)]
    heads = [found for found in stored if HEAD.search(found[1].name)]
    embeddings = [found for found in stored if EMBEDDING.search(found[1].name)]
    if len(heads) != 1 or len(embeddings) != 1 or is_equal_tensor(heads[0], embeddings[0]):
        return None
    return other_head(heads[0][1].name, embeddings[0][1].name)


def other_head(head: str, embedding: str) -> str:
    """Return, as a clause, that a stored head differs from the embeddings to which it is tied, and the fix."""
    return (
        f"{head} differs from {embedding}, although its config.json ties them: set tie_word_embeddings to false, or"
        " remove the head"
    )


def is_equal_tensor(one: tuple[Path, TensorHeader], other: tuple[Path, TensorHeader]) -> bool:
    """Return whether two tensors have the same type, shape and bytes."""
    if (one[1].dtype, one[1].shape) != (other[1].dtype, other[1].shape):
        return False
    with one[0].open("rb") as first, other[0].open("rb") as second:
        first.seek(one[1].offset)
        second.seek(other[1].offset)
        left = one[1].bytes
        while left > 0:
            size = min(left, _BLOCK_BYTES)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True


def _file_problems(folder: Path, *, is_complete: bool) -> Iterator[str]:
    for name in _JSON_FILES:
        yield from _json_problems(folder / name)
    files = _weight_files(folder)
    for path in files:
        if not path.is_relative_to(folder) or ".." in path.relative_to(folder).parts:
            yield (
                f"{INDEX_FILE} names a file outside of the folder ({os.path.relpath(path, folder)}): copy it into the "
                "folder, and correct the index"
            )
        is_needed = is_complete or path.is_symlink()
        problem = _weight_problem(path) if path.exists() else _absence(path) if is_needed else None
        if problem:
            yield problem
    if not files:
        yield from _pickle_problems(folder, is_complete=is_complete)
    if len(files) > 1 or (folder / INDEX_FILE).is_file():
        yield from _index_problems(folder, files)


def _pickle_problems(folder: Path, *, is_complete: bool) -> Iterator[str]:
    """Yield the problems of PyTorch's own files, which are loaded if there are no safetensors files."""
    found = weight_files(folder)
    if any(path.suffix != ".bin" for path in found):
        return
    yield from filter(None, map(pickle_problem, found))
    if (folder / PICKLE_INDEX).is_file() and not (folder / "pytorch_model.bin").is_file():
        absent = [path for name in indexed_names(folder / PICKLE_INDEX) if not (path := folder / name).is_file()]
        yield from (_absence(path, PICKLE_INDEX) for path in absent if is_complete or path.is_symlink())


def pickle_problem(path: Path) -> str | None:
    """Return why a file is not one of torch.save's (2.14): a zip file, or a pickle; None: it is one, or is unknown."""
    if is_pointer(path):
        return f"{path.name} is a Git LFS pointer, not the file itself: {_LFS}"
    with path.open("rb") as file:
        beginning = file.read(len(_ZIP))
    if beginning[:1] == _PICKLE and path.stat().st_size >= _SMALLEST_PICKLE:
        return None
    if beginning == _ZIP:
        return (
            None
            if zipfile.is_zipfile(path)
            else f"{path.name} is not complete (it is a truncated zip file): {_DOWNLOAD}"
        )
    return f"{path.name} is not a file of PyTorch: {_DOWNLOAD}"


def _absence(path: Path, index: str = INDEX_FILE) -> str:
    """Return why a file does not exist, and the fix, as a clause."""
    if path.is_symlink():
        return f"{path.name} is a broken symbolic link: {_DOWNLOAD}"
    partial = next((one.name for one in sorted(path.parent.glob(f"{path.name}*"))), None)
    also = f", but {partial} exists" if partial else ""
    return f"{path.name}, which {index} names, is missing{also}: {_DOWNLOAD}"


def _weight_problem(path: Path) -> str | None:
    if is_pointer(path):
        return f"{path.name} is a Git LFS pointer, not the file itself: {_LFS}"
    if not path.stat().st_size:
        return f"{path.name} is empty: {_DOWNLOAD}"
    try:
        headers_of(path)
    except ValueError as error:
        return f"{str(error).replace(str(path), path.name)}: {_DOWNLOAD}"
    return None


def _json_problems(path: Path) -> Iterator[str]:
    if not path.is_file():
        # transformers treats it as missing, and uses defaults instead.
        if path.exists() or path.is_symlink():
            yield f"{path.name} is {'not a file' if path.exists() else 'a broken symbolic link'}: {_DOWNLOAD}"
        return
    if is_pointer(path):
        yield f"{path.name} is a Git LFS pointer, not the file itself: {_LFS}"
        return
    if path.name == TOKENIZER_FILE:
        facts = read_tokenizer(path)
        if facts.problem:
            yield f"{path.name} {facts.problem}: {_COPY_TOKENIZER}"
        elif not facts.is_object:
            yield f"{path.name} is not a JSON object: {_DOWNLOAD}"
        return
    content = _json(path, path.stat().st_mtime_ns)
    if not isinstance(content, dict):
        yield f"{path.name} is not a JSON object: {_DOWNLOAD}"
    elif path.name in _INDEXES and not isinstance(content.get("weight_map"), dict):
        yield f"{path.name} has no weight_map: {_DOWNLOAD}"


def _index_problems(folder: Path, files: Sequence[Path]) -> Iterator[str]:
    """Yield tensors that the index places in a file that lacks them, and tensors that two files have."""
    if not all(path.is_file() for path in files):
        return
    names = {str(path.relative_to(folder)): [header.name for header in headers_of(path)] for path in files}
    weight_map = _json(folder / INDEX_FILE, (folder / INDEX_FILE).stat().st_mtime_ns)["weight_map"]
    absent = sorted(name for name, file in weight_map.items() if name not in names.get(str(file), ()))
    if absent:
        yield f"{weight_map[absent[0]]} lacks {listed(absent)}, which {INDEX_FILE} places there: {_DOWNLOAD}"
    counts = Counter(name for found in names.values() for name in found)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        yield f"{listed(twice)} is in more than one of its files: {_DOWNLOAD}"


def _content_problems(folder: Path, headers: Sequence[TensorHeader], shape: ModelShape | None) -> Iterator[str]:
    embedding = next((header for header in headers if EMBEDDING.search(header.name)), None)
    rows = embedding.shape[0] if embedding and embedding.shape else None
    if shape and embedding and len(embedding.shape) == 2 and embedding.dtype.startswith(("F", "BF")):  # noqa: PLR2004
        expected = (shape.vocab_size, shape.embedding_size)
        if embedding.shape != expected:
            found = "x".join(map(str, embedding.shape))
            yield (
                f"{embedding.name} is {found}, but its config.json describes {expected[0]}x{expected[1]}: "
                f"correct config.json, or {_DOWNLOAD}"
            )
        if not shape.tied_embeddings and not any(HEAD.search(header.name) for header in headers):
            yield (
                "it has no head (lm_head), and its config.json does not tie the embeddings: set tie_word_embeddings to "
                f"true, if the model was trained so, or {_DOWNLOAD}"
            )
    if shape and (reshaped := shape_problem(headers, shape)):
        yield f"{reshaped}: correct config.json, or {_DOWNLOAD}"
    if shape and not _declares_quantization(folder) and (quantized := type_problem(headers, shape)):
        yield f"{quantized}: restore its quantization_config, or {_DOWNLOAD}"
    names = {header.name for header in headers}
    yield from _missing_in_layers(names, shape)
    yield from _missing_in_experts(names)
    vocabulary = shape.vocab_size if shape else rows
    path = folder / TOKENIZER_FILE
    largest = read_tokenizer(path).largest if path.is_file() else None
    if vocabulary and largest is not None and largest >= vocabulary:
        yield (
            f"{TOKENIZER_FILE} has token ids up to {largest}, but the model has {vocabulary} tokens: {_COPY_TOKENIZER}"
        )


def _declares_quantization(folder: Path) -> bool:
    """Return whether a checkpoint declares a quantization, known or not."""
    try:
        return find_declaration(folder) is not None
    except CheckpointFormatError:
        return True


def _missing_in_layers(names: Collection[str], shape: ModelShape | None) -> Iterator[str]:
    """Yield tensors that a layer lacks although most layers of the same kind have them."""
    layers = _parts_of_layers(names, shape.prefix.rpartition(".")[2]) if shape else {}
    if not layers or shape is None:
        return
    predicting = {number for number, parts in layers.items() if any(map(PREDICTION_PART.search, parts))}
    extra = max(layers.keys() - (predicting if shape.config.get(MORE_LAYERS) else set()), default=0)
    if extra >= shape.layers and not shape.left_out:
        yield (
            f"it has tensors of layer index {extra}, but num_hidden_layers is {shape.layers}: "
            f"correct config.json, or {_DOWNLOAD}"
        )
    lost = next((number for number in range(shape.layers) if number not in layers), None)
    if lost is not None:
        yield (
            f"it has no tensor of layer index {lost}, but num_hidden_layers is {shape.layers}: "
            f"correct config.json, or {_DOWNLOAD}"
        )
    for kind in set(shape.pattern):
        parts = {number: layers.get(number, set()) for number, own in enumerate(shape.pattern) if own == kind}
        counts = Counter(part for found in parts.values() for part in found)
        for part in sorted(part for part, count in counts.items() if len(parts) / 2 < count < len(parts)):
            absent = next(number for number, found in parts.items() if part not in found)
            yield f"layer {absent} has no {part}, although other layers have one: {_DOWNLOAD}"


def _parts_of_layers(names: Iterable[str], list_name: str) -> dict[int, set[str]]:
    """Return by layer the tensor names, after the layer's number, without those of experts."""
    pattern = re.compile(rf"(^|\.){re.escape(list_name)}\.(\d+)\.(.+)$")
    found: dict[int, set[str]] = defaultdict(set)
    for name in names:
        if ".experts." not in name and (part := pattern.search(name)):
            found[int(part[2])].add(part[3])
    return found


def _missing_in_experts(names: Iterable[str]) -> Iterator[str]:
    """Yield a tensor that one expert lacks although the other experts of the layer have it."""
    groups: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        if found := _EXPERT.match(name):
            groups[found["before"]][int(found["number"])].add(found["after"])
    for before, experts in sorted(groups.items()):
        parts = set().union(*experts.values())
        for number in range(max(experts) + 1):
            absent = sorted(parts - experts.get(number, set()))
            if absent:
                yield f"{before}{number}.{absent[0]} is missing, although other experts have it: {_DOWNLOAD}"


def _weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers loads, whether they exist or not."""
    index = folder / INDEX_FILE
    content = _json(index, index.stat().st_mtime_ns) if index.is_file() else None
    weight_map = content.get("weight_map") if isinstance(content, Mapping) else None
    if isinstance(weight_map, dict):
        return [folder / str(name) for name in sorted(set(map(str, weight_map.values())))]
    single = folder / SINGLE_FILE
    return [single] if single.is_file() or single.is_symlink() else []


def is_pointer(path: Path) -> bool:
    """Return whether a file is a Git LFS pointer."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


@lru_cache(maxsize=64)
def _json(path: Path, _modified_ns: int) -> Any:
    """Return the content of a JSON file; None: it is invalid."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
