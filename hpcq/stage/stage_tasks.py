"""Stage the data sets of tasks, and calibration texts, from the hub or a mirror. The core calls it on a login node.

A second call makes no request to the hub and starts no program. A killed call leaves only complete folders and files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from hpcq.core.calibration_source import CalibrationSource, parse_calibration_source
from hpcq.core.hub_cache import HubCache
from hpcq.core.text_marker import is_text_complete
from hpcq.core.work_records import Task
from hpcq.stage.data_request import DataRequest
from hpcq.stage.run_data_program import run_data_program
from hpcq.stage.stage_item import stage_support_files
from hpcq.stage.staged_tasks import is_task_staged, support_files

Progress = Callable[[str], None]


def _ignore(_task: str) -> None:
    pass


def stage_tasks(
    tasks: Sequence[Task],
    cache: HubCache,
    *,
    mirror: Path | None,
    progress: Progress,
    begins: Callable[[str], None] = _ignore,
) -> None:
    """Stage everything that `tasks` read: data sets at `Task.data_revisions`, and NLTK's data for IFEval.

    Args:
        tasks: Tasks with `data_revisions`; those with `data_path` need nothing.
        cache: Folders of what is staged.
        mirror: Folder that replaces the hub.
        progress: Called with one line before each slow step.
        begins: Called with the name of the task that the following lines are about.

    Raises:
        UserInputError: The files of a mirror are damaged or incomplete.
        SetupError: A data set cannot be downloaded, read or prepared.
        StorageError: The cache cannot be written.
    """
    missing = [task for task in tasks if task.data_path is None and not is_task_staged(task, cache)]
    for support in dict.fromkeys(support for task in missing for support in support_files(task)):
        stage_support_files(support, progress)
    if missing:
        request = DataRequest(tasks=tuple(missing), cache=cache, mirror=mirror)
        run_data_program(request, progress=progress, begins=begins)


def stage_calibration_text(
    source: CalibrationSource | str, cache: HubCache, *, mirror: Path | None, progress: Progress
) -> Path:
    """Stage a calibration text from a data set, and return its file of JSON lines {"text": …}.

    Args:
        source: The column of a data set, also as `Calibration.source` describes it.
        cache: Folders of what is staged.
        mirror: Folder that replaces the hub.
        progress: Called with one line before each slow step.

    Raises:
        KeyedInputError: The data set does not have the configuration, the split or the column, or it is not text.
        SetupError: The data set cannot be downloaded or read.
        StorageError: The cache cannot be written.
    """
    parsed = parse_calibration_source(source) if isinstance(source, str) else source
    path = parsed.path(cache)
    if not is_text_complete(path):
        run_data_program(DataRequest(calibrations=(str(parsed),), cache=cache, mirror=mirror), progress=progress)
    return path
