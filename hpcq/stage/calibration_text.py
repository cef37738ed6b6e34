"""Calibration text from a column of a data set: its first texts, in the order of the split's files and rows.

Files are downloaded one after the other until there are enough characters: of C4, one of 1024 files. The number of
characters does not depend on the manifest, so that a source always is the same text.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec.compression
import pyarrow

from hpcq.core.calibration_source import DEFAULT_CONFIG, CalibrationSource
from hpcq.core.errors import KeyedInputError
from hpcq.core.files import committed_file
from hpcq.quantize.calibration_text import Passage, passage_problem
from hpcq.stage.prepare_dataset import loading_errors, make_builder
from hpcq.stage.repository_view import RepositoryView, Selection

MAXIMUM_CHARACTERS = 2**26
"""A text ends with the row that reaches this number: about 16 million tokens of English, or 4096 × 4096. It is part of
what `Calibration.source` means: to change it, change the source's form too."""


def prepare_calibration_text(view: RepositoryView, source: CalibrationSource, path: Path) -> None:
    """Commit to `path` the JSON lines {"text": …} of the rows of `source` that are not blank; a text may be a chat.

    Raises:
        KeyedInputError: The data set does not have the configuration, the split or the column, or it is not text.
        SetupError: A file cannot be downloaded or read.
        StorageError: The file cannot be written.
    """
    name = None if source.config == DEFAULT_CONFIG else source.config
    arguments = {"name": name} if name else {}
    _register_zstd()
    with (
        loading_errors(view, arguments),
        committed_file(path) as temporary,
        temporary.open("w", encoding="utf-8") as lines,
    ):
        count = 0
        for text in _texts(view, arguments, source):
            # ASCII, because some readers also split lines at U+2028 or U+0085.
            lines.write(json.dumps({"text": text}) + "\n")
            count += len(text) if isinstance(text, str) else sum(len(message["content"]) for message in text)
            if count >= MAXIMUM_CHARACTERS:
                break
        if not count:
            raise KeyedInputError(
                "calibration.column", f"'{source.column}' of {source} has no text. Set another column."
            )


def _texts(view: RepositoryView, arguments: dict[str, Any], source: CalibrationSource) -> Iterator[Passage]:
    """Yield the texts file by file; fetch each file when its first row is needed."""
    selection = view.select(arguments)
    if not selection.is_plain:
        _check_configuration(selection, source)
    with tempfile.TemporaryDirectory() as cache:
        files = make_builder(selection, cache).config.data_files
        if source.split not in files:
            sentence = f"{source.repo_id} has no split '{source.split}'. Set one of {', '.join(files)}."
            raise KeyedInputError("calibration.split", sentence)
        for file in list(files[source.split]):
            view.link([view.relative_name(file)])
            builder = make_builder(selection, cache, data_files={source.split: [file]})
            for row in builder.as_streaming_dataset(split=source.split):
                yield from _text(row, source)


def _check_configuration(selection: Selection, source: CalibrationSource) -> None:
    names = datasets.get_dataset_config_names(selection.path)
    is_named = source.config != DEFAULT_CONFIG
    if source.config in names or (not is_named and datasets.get_dataset_default_config_name(selection.path)):
        return
    problem = f"has no configuration '{source.config}'" if is_named else "has several configurations"
    raise KeyedInputError("calibration.config", f"{source.repo_id} {problem}. Set one of {', '.join(names)}.")


def _text(row: dict[str, Any], source: CalibrationSource) -> list[Passage]:
    """Return the row's text or chat; an empty list if it is blank."""
    key = "calibration.column"
    if source.column not in row:
        sentence = f"{source.repo_id} has no column '{source.column}'. Set one of {', '.join(row)}."
        raise KeyedInputError(key, sentence)
    value = row[source.column]
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return []
    if problem := passage_problem(value):
        raise KeyedInputError(key, f"'{source.column}' of {source.repo_id} {problem}. Set another column.")
    is_chat = not isinstance(value, str)
    return [[{name: message[name] for name in ("role", "content")} for message in value] if is_chat else value]


def _register_zstd() -> None:
    """Let `datasets` read Zstandard files, which need a package that the environment does not have, with pyarrow."""
    if "zstd" not in fsspec.compression.compr:
        fsspec.compression.register_compression("zstd", _open_zstd, ["zst"])


def _open_zstd(file: Any, **_: Any) -> io.BufferedReader:
    return io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"))
