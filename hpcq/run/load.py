"""Load a run from a manifest or from its folder."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcq.catalog.tasks import find_task
from hpcq.core.attempts import read_attempts
from hpcq.core.errors import ManifestError, UserInputError
from hpcq.core.files import read_regular
from hpcq.core.frozen import dataclass
from hpcq.core.paths import RunLayout
from hpcq.core.umask import user_umask
from hpcq.core.work_records import SYNTHETIC
from hpcq.manifest import ResolvedManifest, load, resolve, run_layout
from hpcq.manifest.context import cache_errors
from hpcq.manifest.pins import Pins
from hpcq.manifest.profiles import Profile
from hpcq.manifest.schema import LockedRepository, Manifest
from hpcq.plan.cost.calibration import EMPTY_HISTORY, RunHistory, read_history
from hpcq.plan.planner import make_plan
from hpcq.plan.units import Plan
from hpcq.run.record import find_lock_file, layout_from_lock, read_plan
from hpcq.stage.pins import find_pins
from hpcq.stage.staged_tasks import staged_examples, staged_size


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """A resolved and planned manifest. The run's folder may not exist yet.

    Attributes:
        resolved: The manifest.
        plan: Its plan.
        earlier_address: Address of the plan that was in the run's folder when the manifest was loaded; None: no plan.
        history: Attempts of the run.
    """

    resolved: ResolvedManifest
    plan: Plan
    earlier_address: str | None = None
    history: RunHistory = EMPTY_HISTORY

    @property
    def layout(self) -> RunLayout:
        """Paths of the run."""
        return self.resolved.layout

    @property
    def profile(self) -> Profile:
        """Profile of the cluster."""
        return self.resolved.profile

    @property
    def on_slurm(self) -> bool:
        """Whether units run as Slurm jobs; otherwise they run on this machine."""
        return self.profile.scheduler == "slurm"

    @property
    def is_synthetic(self) -> bool:
        """Whether the responses are synthetic (`evaluate.backend = "synthetic"`)."""
        return self.resolved.evaluate.backend == SYNTHETIC


def load_manifest(path: Path, overrides: Sequence[str] = ()) -> LoadedRun:
    """Load, resolve and plan a manifest.

    Raises:
        ManifestError: The manifest is invalid; the message lists every problem.
    """
    with user_umask():  # configurations of models are downloaded to the cache
        context = load(path, overrides, find_pins=_find_pins)
        with cache_errors(context.manifest):
            resolved = _with_sizes(resolve(context))
            check_examples(resolved)
            document = read_plan(resolved.layout)
            history = _read_history(resolved.layout, document)
            return LoadedRun(
                resolved=resolved,
                plan=make_plan(resolved, history),
                history=history,
                earlier_address=document.get("address") if document else None,
            )


def _with_sizes(resolved: ResolvedManifest) -> ResolvedManifest:
    """Add the sizes of the tasks that are not in the catalog and were counted when they were staged."""
    cache = resolved.context.cache
    tasks = (
        task if find_task(task.name) else dataclasses.replace(task, size=staged_size(task, cache))
        for task in resolved.tasks
    )
    return dataclasses.replace(resolved, tasks=tuple(tasks))


def check_examples(resolved: ResolvedManifest) -> None:
    """Refuse prompts with more few-shot examples than staged data have; `check_items` does so for folders.

    The numbers are known once the data are staged.

    Raises:
        ManifestError: The message names each task.
    """
    manifest, cache = resolved.context.manifest, resolved.context.cache
    problems = [
        manifest.source.message(
            ("tasks", "options", task.name, "num_fewshot"),
            f"{task.num_fewshot} is more than the {found} items that '{task.name}' has for few-shot examples.",
        )
        for task in resolved.tasks
        if task.num_fewshot and (found := staged_examples(task, cache)) is not None and task.num_fewshot > found
    ]
    if problems:
        raise ManifestError(problems)


def _find_pins(manifest: Manifest) -> Pins:
    """Return the commits of the manifest's hub repositories; those in the lock file of the run, if it exists."""
    return find_pins(manifest, _locked_repositories(run_layout(manifest).manifest_lock))


def _locked_repositories(lock: Path) -> tuple[LockedRepository, ...]:
    try:
        rows = tomllib.loads(read_regular(lock).decode())["locked"]["repositories"]
        return tuple(map(LockedRepository.model_validate, rows))
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _read_history(layout: RunLayout, document: Mapping[str, Any] | None) -> RunHistory:
    """Read the attempts of the run's earlier plan; an empty history if there is none."""
    return EMPTY_HISTORY if document is None else read_history(document, read_attempts(layout.attempts))


def load_run(name: str, overrides: Sequence[str] = ()) -> LoadedRun:
    """Load and plan an existing run from its lock file.

    Args:
        name: The run's name, its folder, or its manifest.
        overrides: `key=value` settings applied to the lock file.

    Raises:
        UserInputError: The run does not exist, its folder was moved, or an override changes its name or folders.
        SetupError: The lock file is damaged.
    """
    lock = find_lock_file(name)
    layout = layout_from_lock(lock)
    loaded = load_manifest(lock, overrides)
    if loaded.layout != layout:
        raise UserInputError(
            f"{lock.parent}: the name and the folders of an existing run (run.name, paths) cannot change. "
            f"To start another run, use `hpcq submit {lock}` with these options."
        )
    return loaded
