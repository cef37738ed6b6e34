"""Load a run from a manifest or from its folder; write the lock file and the plan to its folder.

A run's folder is bound to the address of its plan: one folder never holds results of two different plans. Only models
whose files were repaired after their units had failed are replaced.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcq.core.attempts import read_attempts
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.files import read_regular, write_text
from hpcq.core.paths import RunLayout
from hpcq.core.umask import user_umask
from hpcq.core.work_records import SYNTHETIC, UnitKind
from hpcq.data import find_manifest
from hpcq.manifest import ResolvedManifest, load, lock_text, resolve, run_layout
from hpcq.manifest.context import cache_errors
from hpcq.manifest.loader import load_schema
from hpcq.manifest.pins import Pins
from hpcq.manifest.profiles import Profile
from hpcq.manifest.schema import LockedRepository, Manifest
from hpcq.monitor.completed import completed_units
from hpcq.monitor.units import UnitRecord, read_unit
from hpcq.plan.arrays import make_arrays
from hpcq.plan.cost.calibration import EMPTY_HISTORY, RunHistory, read_history
from hpcq.plan.plan_json import plan_document
from hpcq.plan.planner import make_plan
from hpcq.plan.schedule.simulator import simulate_estimates
from hpcq.plan.tool_versions import versions_by_environment
from hpcq.plan.units import Plan
from hpcq.run.merge_record import write_merge_unit
from hpcq.stage.pins import find_pins

LOCK_FILE_NAME = "manifest.lock.toml"
_DIGEST_OF_MODEL = re.compile(r"models\.\d+\.(digest|checkpoint_digests\..+)")
"""Key of the digest of a local model, or of a local checkpoint that others quantized."""


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """A resolved and planned manifest. The run's folder may not exist yet."""

    resolved: ResolvedManifest
    plan: Plan

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


def load_manifest(path: Path, overrides: Sequence[str] = ()) -> LoadedRun:
    """Load, resolve and plan a manifest.

    Raises:
        ManifestError: The manifest is invalid; the message lists every problem.
    """
    with user_umask():  # configurations of models are downloaded to the cache
        context = load(path, overrides, find_pins=_find_pins)
        with cache_errors(context.manifest):
            resolved = resolve(context)
            return LoadedRun(resolved=resolved, plan=make_plan(resolved, _read_history(resolved.layout)))


def _find_pins(manifest: Manifest) -> Pins:
    """Return the commits of the manifest's hub repositories; those in the lock file of the run, if it exists."""
    return find_pins(manifest, _locked_repositories(run_layout(manifest).manifest_lock))


def _locked_repositories(lock: Path) -> tuple[LockedRepository, ...]:
    try:
        rows = tomllib.loads(read_regular(lock).decode())["locked"]["repositories"]
        return tuple(map(LockedRepository.model_validate, rows))
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _read_history(layout: RunLayout) -> RunHistory:
    """Read earlier plans and attempts of the run; an empty history if the folder does not exist."""
    document = _read_plan(layout)
    return EMPTY_HISTORY if document is None else read_history(document, read_attempts(layout.attempts))


def manifest_layout(path: Path, overrides: Sequence[str] = ()) -> RunLayout:
    """Return the paths of a manifest's run. Its models, data and other inputs may be missing.

    Raises:
        ManifestError: The manifest cannot be read, or a key is invalid.
    """
    return run_layout(load_schema(path, overrides))


def find_runs(folder: Path) -> list[Path]:
    """Return the folders of all runs in `folder`, sorted."""
    return sorted(lock.parent for lock in folder.glob(f"*/{LOCK_FILE_NAME}"))


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


def load_run(name: str, overrides: Sequence[str] = ()) -> LoadedRun:
    """Load and plan an existing run from its lock file.

    Args:
        name: The run's name, its folder, or its manifest.
        overrides: `key=value` settings applied to the lock.

    Raises:
        UserInputError: The run does not exist, its folder was moved, or an override changes its name or folders.
        SetupError: The lock file is damaged.
    """
    lock = find_lock_file(name)
    layout = _layout_from_lock(lock)
    loaded = load_manifest(lock, overrides)
    if loaded.layout != layout:
        raise UserInputError(
            f"{lock.parent}: the name and the folders of an existing run (run.name, paths) cannot change. "
            f"To start another run, use `hpcq submit {lock}` with these options."
        )
    return loaded


def read_run(name: str) -> RunRecord:
    """Read an existing run from its lock and plan files, without resolving models or tasks.

    Args:
        name: The run's name, its folder, or its manifest.

    Raises:
        UserInputError: The run does not exist, or its folder was moved.
        SetupError: The lock file or the plan file is damaged.
    """
    lock = find_lock_file(name)
    layout = _layout_from_lock(lock)
    document = _read_plan(layout)
    units = None if document is None else _read_units(document)
    if document is None or units is None:
        raise SetupError(f"{layout.plan}: the plan is missing or damaged. Run `hpcq resume {name}` to write it again.")
    return RunRecord(layout=layout, plan_document=document, units=units)


def _read_units(document: Mapping[str, Any]) -> tuple[UnitRecord, ...] | None:
    """Return the units of a plan document; None if it is damaged."""
    try:
        return tuple(map(read_unit, document["units"]))
    except (KeyError, TypeError, ValueError):
        return None


def _layout_from_lock(lock: Path) -> RunLayout:
    """Return the run's paths. The lock has absolute paths, so a folder that was moved is refused."""
    try:
        locked = tomllib.loads(read_regular(lock).decode())
        folders = {key: Path(locked["paths"][key]) for key in ("runs", "checkpoints", "logs")}
        layout = RunLayout(name=locked["run"]["name"], **folders)
        original = layout.folder.resolve()
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise SetupError(
            f"{lock}: this run's lock is damaged ({error}). Submit its manifest again to write a new one."
        ) from error
    if lock.parent.resolve() != original:
        raise UserInputError(f"{lock.parent}: this run was created in {layout.folder}. Move the folder back.")
    return layout


def _read_plan(layout: RunLayout) -> dict[str, Any] | None:
    """Return the content of `plan.json`; None if it is missing or damaged."""
    try:
        document = json.loads(read_regular(layout.plan))
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
        return None
    is_plan = isinstance(document, dict) and isinstance(document.get("units"), list)
    return document if is_plan and _read_units(document) is not None else None


def write_run(loaded: LoadedRun) -> None:
    """Write the run's lock file and `plan.json`."""
    layout = loaded.layout
    write_text(layout.manifest_lock, _lock_text(loaded))
    write_merge_unit(layout, loaded.plan)
    arrays = make_arrays(loaded.plan.units, loaded.profile)
    document = plan_document(loaded.plan, arrays, {}, simulate_estimates(arrays, loaded.profile))
    write_text(layout.plan, json.dumps(document, indent=1) + "\n")


def _lock_text(loaded: LoadedRun) -> str:
    return lock_text(loaded.resolved, versions_by_environment(loaded.plan))


def check_same_plan(loaded: LoadedRun) -> None:
    """Check that an existing folder of the run has the same plan address as `loaded`.

    Raises:
        UserInputError: The folder belongs to a run with other settings; the message lists the keys that differ.
    """
    layout = loaded.layout
    if _has_same_plan(loaded):
        return
    changes = _changes(loaded)
    texts = [f"{key} was {before} and is {after}" for key, (before, after) in changes.items()]
    sentence = f"{layout.folder}: this run has other settings ({'; '.join(texts[:3]) or 'other versions'})."
    if _are_repaired_models(loaded, changes):
        raise UserInputError(f"{sentence} Submit the manifest again: these models had failed, and are replaced.")
    raise UserInputError(
        f"{sentence} Submit another run with these options: `hpcq submit MANIFEST -O run.name={layout.name}-2`."
    )


def check_replaceable_plan(loaded: LoadedRun) -> str | None:
    """Check that `loaded` may be submitted to an existing folder of the run.

    Files of a model may have changed since an earlier submission if none of its evaluations has completed: the user has
    repaired it. Its units have new ids, and no response of the old files is read.

    Returns:
        A note about models that are replaced; None: the plan is the same, or the folder does not exist.

    Raises:
        UserInputError: As in `check_same_plan`.
    """
    changes = {} if _has_same_plan(loaded) else _changes(loaded)
    if not _are_repaired_models(loaded, changes):
        check_same_plan(loaded)
        return None
    models = loaded.resolved.context.models
    names = dict.fromkeys(models[int(key.split(".")[1])].id for key in changes)
    return (
        f"{', '.join(names)}: the files have changed since run '{loaded.layout.name}' was submitted, and no evaluation"
        " of the earlier ones is complete: it is a new model in this run, which replaces the earlier one."
    )


def _has_same_plan(loaded: LoadedRun) -> bool:
    plan = _read_plan(loaded.layout)
    return plan is None or plan.get("address") == loaded.plan.address


def _changes(loaded: LoadedRun) -> dict[str, tuple[str, str]]:
    """Return the values before and after, by key of the lock file, of the settings that can change results."""
    try:
        before = _flatten(tomllib.loads(loaded.layout.manifest_lock.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        before = {}
    after = _flatten(tomllib.loads(_lock_text(loaded)))
    return {
        key: (before.get(key, "unset"), after.get(key, "unset"))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(("cluster.", "paths."))
    }


def _are_repaired_models(loaded: LoadedRun, changes: Iterable[str]) -> bool:
    """Return whether only files of models have changed, and no variant that is replaced was evaluated completely."""
    keys, plan = tuple(changes), _read_plan(loaded.layout)
    if plan is None or not keys or not all(_DIGEST_OF_MODEL.fullmatch(key) for key in keys):
        return False
    units = _read_units(plan) or ()
    kept = {unit.variant_id for unit in loaded.plan.units}
    done = completed_units(loaded.layout, units)
    replaced: dict[str | None, set[str]] = {}
    for unit in units:
        if unit.kind is UnitKind.EVALUATE and unit.variant_id not in kept:
            replaced.setdefault(unit.variant_id, set()).add(unit.id)
    return bool(replaced) and not any(shards <= done for shards in replaced.values())


def _flatten(document: object, prefix: str = "") -> dict[str, str]:
    """Return the leaves of a TOML document by dotted key."""
    if isinstance(document, dict):
        items = [(str(key), value) for key, value in document.items()]
    elif isinstance(document, list) and document and isinstance(document[0], dict):
        items = [(str(at), value) for at, value in enumerate(document)]
    else:
        return {prefix: repr(document)}
    leaves: dict[str, str] = {}
    for key, value in items:
        leaves.update(_flatten(value, f"{prefix}.{key}" if prefix else key))
    return leaves
