"""Run the data program in the transformers environment, and forward its messages."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from hpcq.core import environments
from hpcq.core.errors import ConnectionLostError, KeyedInputError, SetupError, StorageError, UserInputError
from hpcq.core.files import remove_stale_temporaries, storage_errors, temporary_path
from hpcq.stage.data_request import DataRequest, MessageKind
from hpcq.stage.staged_tasks import ENVIRONMENT


def _ignore(_task: str) -> None:
    pass


def run_data_program(
    request: DataRequest, *, progress: Callable[[str], None], begins: Callable[[str], None] = _ignore
) -> None:
    """Stage what `request` names. Creates the environment if it is missing.

    Args:
        request: Tasks and calibration texts.
        progress: Called with one line before each slow step.
        begins: Called with the name of the task that the following lines are about.

    Raises:
        KeyedInputError: The request names a configuration, split or column that a data set does not have.
        ConnectionLostError: The hub does not respond, or not without errors, after all retries.
        SetupError: Something cannot be downloaded, read or prepared.
        StorageError: The disk is full, or a folder cannot be written.
    """
    command = [str(environments.create(ENVIRONMENT)), "-m", "hpcq.stage.data_program"]
    with _temporary_folder() as folder, (folder / "stderr").open("w+b") as errors:
        final = _communicate(command, folder, errors, request, progress, begins)
        if final is None:
            errors.seek(0)
            last = " ".join(errors.read().decode(errors="replace").splitlines()[-1:])
            raise SetupError(
                f"The data of {_named(request)} could not be staged: {command[0]} ended without a result "
                f"({last or 'it was killed'}). Run the command again: what is complete stays."
            )
    match MessageKind(final["kind"]):
        case MessageKind.USER_ERROR if "key" in final:
            raise KeyedInputError(final["key"], final["text"])
        case MessageKind.USER_ERROR:
            raise UserInputError(final["text"])
        case MessageKind.SETUP_ERROR:
            raise SetupError(final["text"])
        case MessageKind.CONNECTION_LOST:
            raise ConnectionLostError(final["text"])
        case MessageKind.STORAGE_ERROR:
            raise StorageError(final["text"]) from OSError(final["errno"], final["text"], final["path"])


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Yield a new folder on this machine; those of killed processes are removed first."""
    base = Path(tempfile.gettempdir()) / "hpcq-data"
    remove_stale_temporaries(base.parent, base.name)
    folder = temporary_path(base)
    with storage_errors(folder):
        folder.mkdir(mode=stat.S_IRWXU)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _communicate(
    command: list[str],
    folder: Path,
    errors: IO[bytes],
    request: DataRequest,
    progress: Callable[[str], None],
    begins: Callable[[str], None],
) -> dict[str, Any] | None:
    """Run the program with `folder` for its temporary files; return its final message, or None if it sent none."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(environments.CHECKOUT),
        "TMPDIR": str(folder),
        # The user's cache of datasets is locked, and may be in a home folder that is full or slow.
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",  # login nodes are shared
    }
    final = None
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
    ) as process:
        try:
            for message in _messages(process, request):
                if message["kind"] == MessageKind.PROGRESS:
                    if "task" in message:
                        begins(message["task"])
                    progress(message["text"])
                else:
                    final = message
        except BaseException:
            process.kill()
            raise
    return final


def _messages(process: subprocess.Popen[str], request: DataRequest) -> Iterator[dict[str, Any]]:
    """Send the request, and yield the program's messages."""
    if process.stdin and process.stdout:
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(request.to_json())
        yield from map(json.loads, process.stdout)


def _named(request: DataRequest) -> str:
    return ", ".join([*(task.name for task in request.tasks), *request.calibrations])
