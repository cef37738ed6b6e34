"""Opening a run: from a manifest, or from what a run's folder remembers. Writes a run's folder when it is begun.

A run that exists is bound to what it computes (the plan's address): the same folder never holds two different runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcq.errors import EnvironmentFault, UserInputError
from hpcq.files import storage_faults, write_text
from hpcq.layout import RunLayout
from hpcq.manifest import Manifest, Resolved, load, lock_text, resolve
from hpcq.manifest.profiles import Profile
from hpcq.plan.arrays import make_arrays
from hpcq.plan.document import plan_document
from hpcq.plan.plan import make_plan
from hpcq.plan.tools import versions_by_environment
from hpcq.plan.units import Plan

LOCK_NAME = "manifest.lock.toml"
PRIVATE_UMASK = 0o077


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
    on_slurm: bool


def open_manifest(path: Path, overrides: Sequence[str] = ()) -> Opened:
    """Load, resolve and plan.

    Raises:
        ManifestError: everything that is wrong with the manifest, at once.
    """
    resolved = resolve(load(path, overrides))
    return Opened(resolved=resolved, plan=make_plan(resolved))


def find_lock(name: str) -> Path:
    """The lock of the run that `name` names: a run's name, its folder, or a manifest.

    Raises:
        UserInputError: there is no such run.
    """
    path = Path(name)
    if path.suffix == ".toml":
        manifest = load(path)
        folder = _runs_folder(manifest) / manifest.run.name
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


def _runs_folder(manifest: Manifest) -> Path:
    return Path(manifest.paths.runs)


def open_run(name: str) -> Opened:
    """The run that `name` names, planned from its lock.

    Raises:
        UserInputError: there is no such run.
    """
    return open_manifest(find_lock(name))


def read_run(name: str) -> RunRecord:
    """The run that `name` names, from its lock and its plan, without looking at models or items.

    Raises:
        UserInputError: there is no such run.
        EnvironmentFault: the run's folder is damaged.
    """
    lock = find_lock(name)
    try:
        locked = tomllib.loads(lock.read_text(encoding="utf-8"))
        folders = {key: Path(value) for key, value in locked["paths"].items()}
        layout = RunLayout(
            name=locked["run"]["name"],
            runs=lock.parent.parent.resolve(),
            checkpoints=folders["checkpoints"],
            logs=folders["logs"],
        )
        document = json.loads((lock.parent / "plan.json").read_text(encoding="utf-8"))
        on_slurm = locked["cluster"]["profile"]["scheduler"] == "slurm"
    except (KeyError, ValueError, FileNotFoundError) as error:
        raise EnvironmentFault(
            f"{lock.parent}: this run's folder is damaged ({error}); submit its manifest again to mend it."
        ) from error
    return RunRecord(layout=layout, document=document, on_slurm=on_slurm)


def begin(opened: Opened) -> None:
    """Write the run's folder (lock and plan) unless it is there, for the user's eyes alone.

    Raises:
        UserInputError: the folder belongs to a run that computes something else.
    """
    layout = opened.layout
    os.umask(PRIVATE_UMASK)
    _refuse_another(opened)
    write_text(layout.lock, lock_text(opened.resolved, versions_by_environment(opened.plan)))
    arrays = make_arrays(opened.plan.units, opened.profile)
    write_text(layout.plan, json.dumps(plan_document(opened.plan, arrays, {}), indent=1) + "\n")


def _refuse_another(opened: Opened) -> None:
    layout = opened.layout
    if not layout.plan.is_file():
        return
    address = json.loads(layout.plan.read_text(encoding="utf-8")).get("address")
    if address == opened.plan.address:
        return
    before = _flat(tomllib.loads(layout.lock.read_text(encoding="utf-8")))
    after = _flat(tomllib.loads(lock_text(opened.resolved, versions_by_environment(opened.plan))))
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


@contextlib.contextmanager
def only_one(layout: RunLayout) -> Iterator[None]:
    """Hold the run while it is handed over (on this machine: while it runs), so that nothing is done twice.

    Raises:
        EnvironmentFault: another process holds it.
    """
    with storage_faults(layout.folder):
        layout.folder.mkdir(parents=True, exist_ok=True)
        with layout.held.open("a+") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise EnvironmentFault(
                    f"{layout.folder}: another hpcq command is working on this run; watch it with "
                    f"`hpcq status {layout.name} --watch`."
                ) from None
            held.truncate(0)
            held.write(f"{socket.gethostname()} {os.getpid()}\n")
            held.flush()
            try:
                yield
            finally:
                held.truncate(0)
