"""Opening a run: from a manifest, or from what a run's folder remembers. Writes a run's folder when it is begun.

A run that exists is bound to what it computes (the plan's address): the same folder never holds two different runs.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcq.core.attempts import read_attempts
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.files import write_text
from hpcq.core.paths import RunLayout
from hpcq.manifest import Resolved, layout_of, load, lock_text, resolve
from hpcq.manifest.profiles import Profile
from hpcq.plan.arrays import make_arrays
from hpcq.plan.cost.calibration import NOTHING_EARLIER, Earlier, earlier_of
from hpcq.plan.plan import make_plan
from hpcq.plan.plan_json import plan_document
from hpcq.plan.schedule.simulator import expected
from hpcq.plan.tool_versions import versions_by_environment
from hpcq.plan.units import Plan

LOCK_NAME = "manifest.lock.toml"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A manifest, resolved and planned. Nothing of it need be on disk yet."""

    resolved: Resolved
    plan: Plan

    @property
    def layout(self) -> RunLayout:
        """Where the run lies."""
        return self.resolved.layout

    @property
    def profile(self) -> Profile:
        """The cluster that it runs on."""
        return self.resolved.profile

    @property
    def on_slurm(self) -> bool:
        """False where this machine runs the units itself."""
        return self.profile.scheduler == "slurm"

    @property
    def is_rehearsal(self) -> bool:
        """Whether the synthetic back end answers."""
        return self.resolved.evaluate.backend == "synthetic"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run's folder tells without planning anew: cheap to read, whatever the size of the models."""

    layout: RunLayout
    document: Mapping[str, Any]


def open_manifest(path: Path, overrides: Sequence[str] = ()) -> Opened:
    """Load, resolve and plan.

    Raises:
        ManifestError: everything that is wrong with the manifest, at once.
    """
    resolved = resolve(load(path, overrides))
    return Opened(resolved=resolved, plan=make_plan(resolved, _earlier(resolved.layout)))


def _earlier(layout: RunLayout) -> Earlier:
    """What the run's folder tells of earlier plans and attempts; nothing where there is none."""
    document = _read_plan(layout)
    return NOTHING_EARLIER if document is None else earlier_of(document, read_attempts(layout.attempts))


def find_lock(name: str) -> Path:
    """The lock of the run that `name` names: a run's name, its folder, or a manifest.

    Raises:
        UserInputError: there is no such run, or its folder was moved.
    """
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        folder = layout_of(load(path)).folder
    elif (path / LOCK_NAME).is_file():
        folder = path
    else:
        folder = Path("runs") / name
    lock = folder / LOCK_NAME
    if not lock.is_file():
        known = sorted(item.parent.name for item in folder.parent.glob(f"*/{LOCK_NAME}"))
        raise UserInputError(
            f"{name}: there is no run in {folder}. "
            + (f"Runs in {folder.parent}: {', '.join(known)}." if known else "Begin one with `hpcq submit MANIFEST`.")
        )
    return lock


def open_run(name: str, overrides: Sequence[str] = ()) -> Opened:
    """The run that `name` names, planned from its lock, with `overrides` put in.

    Raises:
        UserInputError: there is no such run, its folder was moved, or an override names or places another run.
        SetupError: the run's folder is damaged.
    """
    lock = find_lock(name)
    layout = _layout_in(lock)
    opened = open_manifest(lock, overrides)
    if opened.layout != layout:
        raise UserInputError(
            f"{lock.parent}: a run keeps its name and its folders (run.name, paths) as long as it lives; "
            f"to begin another one, type `hpcq submit {lock}` with these options."
        )
    return opened


def read_run(name: str) -> RunRecord:
    """The run that `name` names, from its lock and its plan, without looking at models or items.

    Raises:
        UserInputError: there is no such run, or its folder was moved.
        SetupError: the run's folder is damaged.
    """
    lock = find_lock(name)
    layout = _layout_in(lock)
    document = _read_plan(layout)
    if document is None:
        raise SetupError(f"{layout.plan}: the plan is missing or damaged; `hpcq resume {name}` mends it.")
    return RunRecord(layout=layout, document=document)


def _layout_in(lock: Path) -> RunLayout:
    """Where the lock's run lies: where it was made, for its paths are absolute."""
    try:
        locked = tomllib.loads(lock.read_text(encoding="utf-8"))
        folders = {key: Path(value) for key, value in locked["paths"].items()}
        layout = RunLayout(name=locked["run"]["name"], **folders)
        made = layout.folder.resolve()
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise SetupError(
            f"{lock}: this run's lock is damaged ({error}); submit its manifest again to mend it."
        ) from error
    if lock.parent.resolve() != made:
        raise UserInputError(f"{lock.parent}: this run was made in {layout.folder}; move it back there to work on it.")
    return layout


def _read_plan(layout: RunLayout) -> dict[str, Any] | None:
    """The plan's document; None where it is missing or damaged."""
    try:
        document = json.loads(layout.plan.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return document if isinstance(document, dict) and "units" in document else None


def begin(opened: Opened) -> None:
    """Write the run's lock and plan."""
    layout = opened.layout
    write_text(layout.lock, _lock_text(opened))
    arrays = make_arrays(opened.plan.units, opened.profile)
    document = plan_document(opened.plan, arrays, {}, expected(arrays, opened.profile))
    write_text(layout.plan, json.dumps(document, indent=1) + "\n")


def _lock_text(opened: Opened) -> str:
    return lock_text(opened.resolved, versions_by_environment(opened.plan))


def refuse_another(opened: Opened) -> None:
    """See that the run's folder, if there is one, computes what `opened` does.

    Raises:
        UserInputError: it belongs to another manifest.
    """
    layout = opened.layout
    plan = _read_plan(layout)
    if plan is None or plan.get("address") == opened.plan.address:
        return
    try:
        before = _flat(tomllib.loads(layout.lock.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        before = {}
    after = _flat(tomllib.loads(_lock_text(opened)))
    changes = [
        f"{key} was {before.get(key, 'unset')} and is {after.get(key, 'unset')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(("cluster.", "paths."))
    ]
    raise UserInputError(
        f"{layout.folder}: this run was made from another manifest ({'; '.join(changes[:3]) or 'other versions'}). "
        f"Give this one its own name (-O run.name={layout.name}-2), or remove the folder."
    )


def _flat(document: object, prefix: str = "") -> dict[str, str]:
    """Leaves of a TOML document by dotted key."""
    if isinstance(document, dict):
        items = [(str(key), value) for key, value in document.items()]
    elif isinstance(document, list) and document and isinstance(document[0], dict):
        items = [(str(at), value) for at, value in enumerate(document)]
    else:
        return {prefix: repr(document)}
    leaves: dict[str, str] = {}
    for key, value in items:
        leaves.update(_flat(value, f"{prefix}.{key}" if prefix else key))
    return leaves
