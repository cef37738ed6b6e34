"""Inputs of a run that are staged: environments, models, data of tasks, calibration text."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from hpcq.catalog.packages import staged_calibration_path, staged_dataset_path, staged_model_path
from hpcq.catalog.plugins import lock_folder
from hpcq.core import environments
from hpcq.core.calibration_source import parse_calibration_source
from hpcq.core.frozen import dataclass
from hpcq.core.hub_cache import HubCache, RepoKind
from hpcq.core.text_marker import is_text_complete
from hpcq.core.work_records import Calibration, FidelityPanel, StageWork
from hpcq.manifest import ResolvedManifest
from hpcq.quantize.checkpoint_lock import LockOwner
from hpcq.stage.model_snapshot import missing_bytes, stage_model
from hpcq.stage.progress import Item, ItemKind, Origin, StagedItem, StageReporter
from hpcq.stage.snapshot import Snapshot, is_staged, write_ref
from hpcq.stage.stage_item import stage_calibration, stage_dataset
from hpcq.stage.stage_item import stage_model as stage_packaged_model
from hpcq.stage.stage_tasks import stage_calibration_text, stage_tasks
from hpcq.stage.staged_tasks import is_task_staged


class Input(Protocol):
    """Something that is staged.

    Attributes:
        item: Its name, for messages.
    """

    @property
    def item(self) -> Item: ...  # noqa: D102 (described above)

    def is_staged(self) -> bool:
        """Return whether it is complete on this file system. Makes no request."""

    def missing_bytes(self) -> int:
        """Return the missing bytes; 0 if the number is unknown, which is the case only for small inputs."""

    def stage(self, reporter: StageReporter) -> None:
        """Stage it, if it is not complete."""


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A model on the hub, at a commit. See `Input`."""

    id: str
    commit: str
    cache: HubCache
    owner: LockOwner | None = None

    @property
    def item(self) -> Item:  # noqa: D102
        return Item(kind=ItemKind.MODEL, name=self.id, commit=self.commit)

    def is_staged(self) -> bool:  # noqa: D102
        return is_staged(RepoKind.MODEL, self.id, self.commit, self.cache)

    def missing_bytes(self) -> int:  # noqa: D102
        return missing_bytes(self.id, self.commit, self.cache).size

    def stage(self, reporter: StageReporter) -> None:  # noqa: D102
        stage_model(self.id, self.commit, self.cache, reporter=reporter, owner=self.owner)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An input that a function prepares, with lines of progress. See `Input`.

    Attributes:
        item: Its name.
        exists: Returns whether it is complete.
        prepare: Prepares it. Receives a function that takes a line of progress, and the item that the line is about.
        existed: Returns whether it was complete before an input with which it is prepared; None: it is prepared alone.
    """

    item: Item
    exists: Callable[[], bool]
    prepare: Callable[[Callable[..., None]], object]
    existed: Callable[[], bool] | None = None

    def is_staged(self) -> bool:  # noqa: D102
        return self.exists()

    def missing_bytes(self) -> int:  # noqa: D102
        return 0

    def stage(self, reporter: StageReporter) -> None:  # noqa: D102
        began_s, existed = time.monotonic(), (self.existed or self.exists)()

        def note(line: str, item: Item = self.item) -> None:
            reporter.note(item, line)

        self.prepare(note)
        origin = Origin.STAGED if existed else Origin.PREPARED
        reporter.finished(StagedItem(item=self.item, origin=origin, size=0, seconds=time.monotonic() - began_s))


def hub_inputs(work: StageWork, owner: LockOwner | None = None) -> tuple[Input, ...]:
    """Return the inputs that are staged from the hub or a mirror: models, data of tasks, calibration text.

    Args:
        work: The staging.
        owner: Owner of the locks: the attempt of a unit; None: this process.
    """
    models = [HubModel(id=name, commit=commit, cache=work.cache, owner=owner) for name, commit in work.models]
    texts = {ItemKind.CALIBRATION: work.calibration, ItemKind.PANEL: work.panel}
    return (*models, *_hub_tasks(work), *(_hub_text(kind, text, work) for kind, text in texts.items() if text))


def write_refs(work: StageWork) -> None:
    """Record the commits of branches and tags in the cache's refs, as the hub's client does."""
    for kind, repo_id, commit, name in work.refs:
        write_ref(Snapshot(kind=kind, repo_id=repo_id, commit=commit, cache=work.cache), name)


def _hub_tasks(work: StageWork) -> Iterator[Prepared]:
    """Yield the tasks. All missing ones are prepared with the first: the program takes seconds to start."""

    def prepare(note: Callable[..., None]) -> None:
        items = [_task_item(work.tasks[0].name)]
        stage_tasks(
            work.tasks,
            work.cache,
            mirror=_mirror(work),
            progress=lambda line: note(line, items[-1]),
            begins=lambda name: items.append(_task_item(name)),
        )

    staged_before = functools.cache(lambda: [task for task in work.tasks if is_task_staged(task, work.cache)])
    for task in work.tasks:
        yield Prepared(
            item=_task_item(task.name),
            exists=functools.partial(is_task_staged, task, work.cache),
            prepare=prepare,
            existed=functools.partial(lambda one: one in staged_before(), task),
        )


def _task_item(name: str) -> Item:
    return Item(kind=ItemKind.DATASET, name=name)


def _hub_text(kind: ItemKind, text: Calibration | FidelityPanel, work: StageWork) -> Prepared:
    source = parse_calibration_source(text.source or "")
    return Prepared(
        item=Item(kind=kind, name=source.repo_id, commit=source.commit),
        exists=lambda: is_text_complete(source.path(work.cache)),
        prepare=lambda progress: stage_calibration_text(source, work.cache, mirror=_mirror(work), progress=progress),
    )


def _mirror(work: StageWork) -> Path | None:
    return Path(work.mirror) if work.mirror else None


def package_inputs(resolved: ResolvedManifest) -> Iterator[Input]:
    """Yield the models, data sets and calibration text that the manifest takes from public packages."""
    for model in dict.fromkeys(model for model, _ in resolved.pairs):
        path = staged_model_path(model.id)
        if path and model.path == str(path):
            yield _packaged(ItemKind.MODEL, model.id, path, stage_packaged_model)
    for task in resolved.tasks:
        path = staged_dataset_path(task.name)
        if path and task.data_path == str(path):
            yield _packaged(ItemKind.DATASET, task.name, path, stage_dataset)
    staged: set[Path] = set()
    for kind, text in ((ItemKind.CALIBRATION, resolved.calibration), (ItemKind.PANEL, resolved.panel)):
        path = staged_calibration_path(text.dataset) if text else None
        if text and path and text.path == str(path) and path not in staged:
            staged.add(path)
            yield _packaged(kind, text.dataset, path, stage_calibration)


def _packaged(kind: ItemKind, name: str, path: Path, stage: Callable[..., Path]) -> Prepared:
    return Prepared(
        item=Item(kind=kind, name=name), exists=path.exists, prepare=lambda progress: stage(name, progress=progress)
    )


def environment_input(name: str) -> Prepared:
    """Return a Python environment that has a lock file."""
    locks = lock_folder(name)
    return Prepared(
        item=Item(kind=ItemKind.ENVIRONMENT, name=name),
        exists=lambda: environments.exists(name, locks),
        prepare=lambda _progress: environments.create(name, locks),
    )
