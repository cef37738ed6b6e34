"""Runs as their folders record them: found by name, folder or manifest, and read without planning again."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.files import read_regular
from hpcq.core.frozen import dataclass
from hpcq.core.paths import RunLayout
from hpcq.core.work_records import SYNTHETIC
from hpcq.data import find_manifest
from hpcq.monitor.units import UnitRecord, read_unit

LOCK_FILE_NAME = "manifest.lock.toml"
MAX_LISTED_JOBS = 3
"""Maximum number of jobs that a message lists."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as stored in its folder. Reading it does not load models or plan again.

    Attributes:
        layout: Paths of the run.
        plan_document: Content of `plan.json`.
        units: Its units.
    """

    layout: RunLayout
    plan_document: Mapping[str, Any]
    units: tuple[UnitRecord, ...]

    @property
    def is_synthetic(self) -> bool:
        """Whether the responses are synthetic (`evaluate.backend = "synthetic"`)."""
        return any(row.get("backend") == SYNTHETIC for row in self.plan_document["units"])


def manifest_layout(path: Path, overrides: Sequence[str] = ()) -> RunLayout:
    """Return the paths of a manifest's run. Its models, data and other inputs may be missing.

    Raises:
        ManifestError: The manifest cannot be read, or a key is invalid.
    """
    from hpcq.manifest.loader import load_schema
    from hpcq.manifest.resolver import run_layout

    return run_layout(load_schema(path, overrides))


def find_runs(folder: Path) -> list[Path]:
    """Return the folders of all runs in `folder`, sorted."""
    return sorted(lock.parent for lock in folder.glob(f"*/{LOCK_FILE_NAME}"))


def find_latest_run(folder: Path) -> Path:
    """Return the folder of the run in `folder` whose lock file was written last.

    Raises:
        UserInputError: There is no run.
    """
    found = max(find_runs(folder), key=lambda run: (run / LOCK_FILE_NAME).stat().st_mtime, default=None)
    if found is None:
        raise UserInputError(f"{folder}: there is no run: name its folder, or start one with `hpcq submit MANIFEST`.")
    return found


def find_lock_file(name: str) -> Path:
    """Return the path of a run's lock file.

    Args:
        name: The run's name, its folder, or its manifest.

    Raises:
        UserInputError: The run does not exist.
    """
    path = find_manifest(Path(name))
    if path.suffix == ".toml" and path.is_file():
        folder = manifest_layout(path).folder
    elif (path / LOCK_FILE_NAME).is_file():
        folder = path
    else:
        folder = Path("runs") / name
    lock = folder / LOCK_FILE_NAME
    if not lock.is_file() and path.is_dir():
        raise UserInputError(
            f"{name}: this folder is not a run, because it has no {LOCK_FILE_NAME}. Give a manifest (a .toml file), or"
            " the name or folder of a run."
        )
    if not lock.is_file():
        known = [item.name for item in find_runs(folder.parent)]
        raise UserInputError(
            f"{name}: no run in {folder}. "
            + (f"Runs in {folder.parent}: {', '.join(known)}." if known else "Start one with `hpcq submit MANIFEST`.")
        )
    return lock


def read_run(name: str) -> RunRecord:
    """Read an existing run from its lock file and its plan, without resolving models or tasks.

    Args:
        name: The run's name, its folder, or its manifest.

    Raises:
        UserInputError: The run does not exist, or its folder was moved.
        SetupError: The lock file or the plan is damaged.
    """
    lock = find_lock_file(name)
    layout = layout_from_lock(lock)
    document = read_plan(layout)
    units = None if document is None else read_units(document)
    if document is None or units is None:
        raise SetupError(f"{layout.plan}: the plan is missing or damaged. Run `hpcq resume {name}` to write it again.")
    return RunRecord(layout=layout, plan_document=document, units=units)


def read_units(document: Mapping[str, Any]) -> tuple[UnitRecord, ...] | None:
    """Return the units of a plan document; None if it is damaged."""
    try:
        return tuple(map(read_unit, document["units"]))
    except (KeyError, TypeError, ValueError):
        return None


def layout_from_lock(lock: Path) -> RunLayout:
    """Return the run's paths. The lock file has absolute paths, so a folder that was moved is refused."""
    try:
        locked = tomllib.loads(read_regular(lock).decode())
        paths = locked["paths"]
        layout = RunLayout(
            name=locked["run"]["name"],
            runs=Path(paths["runs"]),
            checkpoints=Path(paths["checkpoints"]),
            logs=Path(paths["logs"]),
            trusted_users=tuple(paths.get("trusted_users", ())),
            trusted_groups=tuple(paths.get("trusted_groups", ())),
        )
        original = layout.folder.resolve()
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise SetupError(
            f"{lock}: the lock file is damaged ({error}). Submit the run's manifest again to write a new one."
        ) from error
    if lock.parent.resolve() != original:
        raise UserInputError(f"{lock.parent}: this run was created in {layout.folder}. Move the folder back.")
    return layout


def read_plan(layout: RunLayout) -> dict[str, Any] | None:
    """Return the content of `plan.json`; None if it is missing or damaged."""
    try:
        document = json.loads(read_regular(layout.plan))
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
        return None
    is_plan = isinstance(document, dict) and isinstance(document.get("units"), list)
    return document if is_plan and read_units(document) is not None else None
