"""Data sets of lm-eval's definitions: prepared folders instead of the hub.

Definitions call `datasets.load_dataset`, which makes requests to the hub at every call. This is the only module that
replaces it. Workers read folders that `hpcq stage` has prepared; they need no network, no lock and no cache.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.task

from hpcq.core.errors import SetupError, WorkerError
from hpcq.core.frozen import dataclass
from hpcq.core.hub_cache import DEFAULT_REVISION
from hpcq.core.work_records import Task
from hpcq.evaluate.own_documents import read_own_documents

DatasetStager = Callable[[str, str, dict[str, Any], Path], None]
"""Prepares the folder for a repository, its commit and the arguments of `load_dataset`, unless it exists."""

_UNSELECTIVE = frozenset(
    {
        "cache_dir", "download_config", "download_mode", "keep_in_memory", "num_proc", "revision", "save_infos",
        "storage_options", "streaming", "token", "trust_remote_code",
    }
)  # fmt: skip
"""Arguments of `load_dataset` that do not select what is loaded; the commit replaces `revision`."""

_JSON = "json"

_original = datasets.load_dataset


@dataclass(frozen=True, kw_only=True)
class _PreparedDatasets:
    """Prepared data sets of one task.

    Attributes:
        task: The task, with the commits of its data sets.
        stager: Prepares the folders; None: they must exist.
    """

    task: Task
    stager: DatasetStager | None

    def load(self, path: str, options: dict[str, Any]) -> Any:
        """Return what `datasets.load_dataset(path, **options)` would return at the commit of the task."""
        if self.task.definitions and path == _JSON:
            return read_own_documents(self.task, options)
        commit = self._commit(path, options.get("revision"))
        arguments = {key: value for key, value in options.items() if key not in _UNSELECTIVE and value is not None}
        folder = self._folder(path, commit, arguments)
        try:
            loaded = datasets.load_from_disk(str(folder), keep_in_memory=True)
        except (OSError, ValueError, KeyError) as error:
            raise SetupError(
                f"{self.task.name}: {folder}: the prepared data set cannot be read ({error}). "
                "Delete this folder and run `hpcq stage MANIFEST` again."
            ) from error
        return _as_stream(loaded) if options.get("streaming") else loaded

    def _commit(self, repo_id: str, revision: str | None) -> str:
        """Return the commit of a repository; refuse a repository or a revision that the plan does not have."""
        commit = dict(self.task.data_revisions).get(repo_id)
        if commit is None:
            raise SetupError(
                f"{self.task.name}: its definition reads '{repo_id}', for which the run has no commit "
                f"(it has {', '.join(repo for repo, _ in self.task.data_revisions) or 'none'}). "
                "Set tasks.data to a folder of <split>.jsonl files, or correct `datasets` in hpcq/catalog/tasks.toml."
            )
        if revision not in (None, DEFAULT_REVISION, commit):
            raise SetupError(
                f"{self.task.name}: its definition reads revision '{revision}' of '{repo_id}', but the run has commit "
                f"{commit}. Set data.revisions to that revision's commit."
            )
        return commit

    def _folder(self, repo_id: str, commit: str, arguments: dict[str, Any]) -> Path:
        cache = self.task.cache
        folder = cache.dataset(repo_id, commit, arguments) if cache else None
        if folder and self.stager:
            inactive = _active.set(None)  # the stager itself calls `datasets.load_dataset`
            try:
                self.stager(repo_id, commit, arguments, folder)
            finally:
                _active.reset(inactive)
        if folder is None or not folder.is_dir():
            raise SetupError(
                f"{self.task.name}: the data set '{repo_id}' at commit {commit} ({_described(arguments)}) is not staged"
                f"{f' in {folder}' if folder else ''}. Run `hpcq stage MANIFEST` where the hub or a mirror can be read."
            )
        return folder


@contextlib.contextmanager
def prepared_datasets(task: Task, stager: DatasetStager | None = None) -> Iterator[None]:
    """While the block runs, `datasets.load_dataset` returns prepared data sets of `task`.

    Args:
        task: The task, with the commits of its data sets and the cache of prepared folders.
        stager: Prepares missing folders; None on nodes.

    Raises:
        WorkerError: The installed lm-eval does not call `datasets.load_dataset` as this module expects.
    """
    _check_libraries()
    active = _active.set(_PreparedDatasets(task=task, stager=stager))
    datasets.load_dataset = _load_dataset
    try:
        yield
    finally:
        datasets.load_dataset = _original
        _active.reset(active)


_active: ContextVar[_PreparedDatasets | None] = ContextVar("prepared data sets", default=None)
_signature = inspect.signature(_original)


def _load_dataset(*arguments: Any, **options: Any) -> Any:
    """Replace `datasets.load_dataset`, also after the block in definitions that imported it by name."""
    prepared = _active.get()
    if prepared is None:
        return _original(*arguments, **options)
    bound = _signature.bind(*arguments, **options).arguments
    further = bound.pop("config_kwargs", {})
    return prepared.load(bound.pop("path"), {**bound, **further})


def _check_libraries() -> None:
    """Check what this module relies on in lm-eval 0.4.13 and datasets 5.2."""
    expected = ("path", "name", "data_dir", "data_files", "split")
    if lm_eval.api.task.datasets is not datasets or tuple(_signature.parameters)[: len(expected)] != expected:
        raise WorkerError(
            "The installed lm-eval or datasets loads data in another way than lm-eval 0.4.13 with datasets 5.2: "
            "use the versions of the lock file."
        )


def _as_stream(loaded: Any) -> Any:
    if isinstance(loaded, datasets.DatasetDict):
        return datasets.IterableDatasetDict({split: rows.to_iterable_dataset() for split, rows in loaded.items()})
    return loaded.to_iterable_dataset()


def _described(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{key} '{value}'" for key, value in sorted(arguments.items())) or "default configuration"
