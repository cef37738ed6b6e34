"""Program for the transformers environment: stage data sets of tasks, and calibration texts.

Reads one JSON document from stdin (`DataRequest`), and writes one JSON line per message to stdout (`MessageKind`). The
core starts it (`run_data_program.py`) and imports only the description of the documents.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcq.catalog.tasks import find_task
from hpcq.core.calibration_source import CalibrationSource, parse_calibration_source
from hpcq.core.errors import ConnectionLostError, HpcqError, KeyedInputError, SetupError, StorageError, UserInputError
from hpcq.core.files import storage_errors
from hpcq.core.text_marker import is_text_complete, write_text_marker
from hpcq.stage.data_request import DataRequest, MessageKind
from hpcq.stage.hub_client import HubOfflineError, HubUnreachableError
from hpcq.stage.repositories import open_repository
from hpcq.stage.staged_tasks import is_prepared, write_task_marker

if TYPE_CHECKING:
    from hpcq.core.work_records import Task
    from hpcq.stage.repository_view import RepositoryView

Send = Callable[..., None]


class _DataStager:
    """Stages what one request names; each repository is opened once."""

    def __init__(self, request: DataRequest, folder: Path, send: Send) -> None:
        self._request = request
        self._folder = folder
        self._send = send
        self._views: dict[tuple[str, str], RepositoryView] = {}
        self._folders: list[Path] = []

    def stage_task(self, task: Task) -> None:
        """Prepare all data sets that the construction of the task reads, and write the task's marker."""
        from hpcq.evaluate.lm_eval_tasks import load_definition
        from hpcq.evaluate.task_size import count_examples, count_requests

        self._send(MessageKind.PROGRESS, text=f"Data of {task.name}", task=task.name)
        self._folders = []
        staged = replace(task, cache=self._request.cache)
        loaded = load_definition(staged, stager=self._stage_dataset)
        examples = count_examples(loaded["tasks"])
        size = None if find_task(task.name) else count_requests(staged, loaded["tasks"])
        write_task_marker(task, self._request.cache, self._folders, size, examples)

    def stage_calibration(self, source: CalibrationSource) -> None:
        """Write the calibration text and its completion marker, unless it is complete."""
        from hpcq.stage.calibration_text import prepare_calibration_text

        path = source.path(self._request.cache)
        if not is_text_complete(path):
            self._send(MessageKind.PROGRESS, text=f"Calibration text {source}")
            prepare_calibration_text(self._view(source.repo_id, source.commit), source, path)
            write_text_marker(path)

    def _stage_dataset(self, repo_id: str, commit: str, arguments: dict[str, Any], folder: Path) -> None:
        from hpcq.stage.prepare_dataset import prepare_dataset

        if not is_prepared(folder):
            _remove(folder)
            self._send(MessageKind.PROGRESS, text=f"  {repo_id} {arguments.get('name') or ''}".rstrip())
            try:
                prepare_dataset(self._view(repo_id, commit), arguments, folder)
            except (HubUnreachableError, HubOfflineError) as error:
                self._adopt_dataset(repo_id, commit, arguments, folder, error)
        self._folders.append(folder)

    def _adopt_dataset(
        self, repo_id: str, commit: str, arguments: dict[str, Any], folder: Path, error: SetupError
    ) -> None:
        """Take the data set from the cache of `datasets`, because the hub cannot be reached."""
        from hpcq.stage.adopt_dataset import adopt_dataset

        cache = self._request.datasets_cache
        if not adopt_dataset(repo_id, commit, arguments, folder, cache):
            reason = str(error).removesuffix(".")
            raise type(error)(f"{reason}; {cache} does not have it at commit {commit[:12]} either.") from error
        self._notify(f"{repo_id}: without the hub, what `datasets` has prepared in {cache} is used")

    def _notify(self, line: str) -> None:
        self._send(MessageKind.PROGRESS, text=line)

    def _view(self, repo_id: str, commit: str) -> RepositoryView:
        from hpcq.stage.repository_view import RepositoryView

        key = (repo_id, commit)
        if key not in self._views:
            repository = open_repository(repo_id, commit, self._request.cache, self._request.mirror, self._notify)
            folder = self._folder / str(len(self._views)) / repo_id.rpartition("/")[2]
            self._views[key] = RepositoryView(repository=repository, folder=folder)
        return self._views[key]


def _remove(folder: Path) -> None:
    """Remove a prepared data set of which files were deleted."""
    with storage_errors(folder), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _stage(request: DataRequest, folder: Path, send: Send) -> None:
    import datasets

    datasets.disable_progress_bars()
    stager = _DataStager(request, folder, send)
    for task in request.tasks:
        stager.stage_task(task)
    for source in request.calibrations:
        stager.stage_calibration(parse_calibration_source(source))


def main() -> None:
    """Stage what the request on stdin names; an error that the user can fix is the last message."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print; stdout has only messages

    def send(kind: MessageKind, **content: object) -> None:
        output.write(json.dumps({"kind": kind.value, **content}) + "\n")

    request = DataRequest.from_json(sys.stdin.read())
    try:
        with tempfile.TemporaryDirectory() as folder:
            _stage(request, Path(folder).resolve(), send)
    except KeyedInputError as error:
        send(MessageKind.USER_ERROR, text=error.sentence, key=error.key)
    except UserInputError as error:
        send(MessageKind.USER_ERROR, text=str(error))
    except ConnectionLostError as error:
        send(MessageKind.CONNECTION_LOST, text=str(error))
    except StorageError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else OSError()
        send(MessageKind.STORAGE_ERROR, text=str(error), errno=cause.errno, path=cause.filename)
    except HpcqError as error:
        send(MessageKind.SETUP_ERROR, text=str(error))
    else:
        send(MessageKind.DONE)


if __name__ == "__main__":
    main()
