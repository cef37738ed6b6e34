"""Prepare a data set: load a configuration of a repository as `datasets` does online, and save it to a folder."""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow

from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.files import committed_folder
from hpcq.core.sentences import first_line
from hpcq.evaluate.json_documents import read_json_documents
from hpcq.stage.repository_view import RepositoryView, Selection

_LOADING_ONLY = ("split", "verification_mode")
"""Arguments of `load_dataset` that `load_dataset_builder` does not have."""


def prepare_dataset(view: RepositoryView, arguments: dict[str, Any], folder: Path) -> None:
    """Commit to `folder` what `datasets.load_dataset` loads from the repository with `arguments`.

    Raises:
        UserInputError: The files of a mirror are damaged, or do not have what the arguments select.
        SetupError: A file cannot be downloaded, or the repository does not have what the arguments select.
        StorageError: The folder cannot be written.
    """
    with loading_errors(view, arguments), tempfile.TemporaryDirectory() as cache:
        selection = view.select(arguments)
        builder = make_builder(selection, cache)
        view.link(view.relative_name(path) for files in builder.config.data_files.values() for path in files)
        loaded = _load(selection, builder)
        with committed_folder(folder) as temporary:
            loaded.save_to_disk(str(temporary))


def make_builder(selection: Selection, cache: str, **more: Any) -> Any:
    """Return the DatasetBuilder of a selection; `config.data_files` are its files by split.

    Args:
        selection: Arguments of `load_dataset`.
        cache: Folder for temporary Arrow files.
        more: Arguments that replace those of the selection.
    """
    options = {key: value for key, value in selection.options.items() if key not in _LOADING_ONLY}
    return datasets.load_dataset_builder(selection.path, cache_dir=cache, **{**options, **more})


@contextlib.contextmanager
def loading_errors(view: RepositoryView, arguments: dict[str, Any]) -> Iterator[None]:
    """Turn the errors of `datasets` about a repository's content into one sentence."""
    try:
        yield
    except (
        OSError, ValueError, KeyError, RuntimeError, ImportError, zipfile.BadZipFile, pyarrow.ArrowException,
        datasets.exceptions.DatasetsError,
    ) as error:  # fmt: skip
        cause = error.__cause__ or error  # the cause of a DatasetGenerationError has the reason
        line = first_line(cause)
        selected = ", ".join(f"{key} '{value}'" for key, value in sorted(arguments.items()))
        sentence = (
            f"{view.repository.repo_id}: `datasets` cannot load {selected or 'the default configuration'}: "
            f"{line.replace(str(view.folder), view.repository.repo_id)}."
        )
        is_file_system_error = isinstance(cause, OSError) and cause.errno is not None
        if view.repository.is_mirrored and not is_file_system_error:
            raise UserInputError(
                f"{sentence} Copy the files of the repository, or <split>.jsonl files, to its folder in data.mirror."
            ) from error
        raise SetupError(sentence) from error


def _load(selection: Selection, builder: Any) -> Any:
    """Return what `datasets.load_dataset` returns for the selection, with the same steps."""
    split = selection.options.get("split")
    if selection.is_plain and selection.path == "json":
        # The JSON loader would convert strings that look like dates; such files are read like those of `tasks.data`.
        files = selection.options["data_files"]
        # The files themselves, not the view's links: errors name them.
        loaded = read_json_documents({name: [Path(path).readlink() for path in paths] for name, paths in files.items()})
        return loaded[split] if split else loaded
    verification = selection.options.get("verification_mode", datasets.VerificationMode.BASIC_CHECKS)
    builder.download_and_prepare(verification_mode=datasets.VerificationMode(verification))
    return builder.as_dataset(split=split)
