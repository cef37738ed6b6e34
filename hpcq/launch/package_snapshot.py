"""Snapshot of the package hpcq and of the plugins of a run: a job runs what was submitted.

The checkout may change, or move, while jobs wait. A snapshot is named by the digest of its files, so that all runs in a
folder share it. Each run has links to the snapshots of its jobs; a snapshot without a link is removed when another one
is made.

A snapshot contains the files that a wheel does, also the folders that `hpcq.data` links to. The checkout itself would
put tests/ and its other folders on a job's path, and a site-packages folder would shadow the packages of the job's own
environment.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import hpcq
from hpcq.catalog.plugins import Plugin
from hpcq.core.environments import COMMIT_VARIABLE, IS_CHECKOUT
from hpcq.core.files import (
    committed_file,
    committed_folder,
    list_folder,
    make_folder,
    remove_stale_temporaries,
    storage_errors,
    temporary_path,
)
from hpcq.core.frozen import dataclass
from hpcq.core.paths import RunLayout

PACKAGE = Path(hpcq.__file__).resolve().parent

_NAME_CHARACTERS = 16
_KEPT_S = 24 * 3600.0
"""Age at which a snapshot without a link is removed: another command may be about to link to it."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A committed snapshot.

    Attributes:
        path: Its folder, the only one on a job's PYTHONPATH.
        digest: SHA-256 over the names and contents of its files.
        commit: Commit of the checkout from which it was made, which may have changes; empty if unknown.
    """

    path: Path
    digest: str
    commit: str

    def script(self, name: str) -> Path:
        """Return the path of a file of `sbatch/`."""
        return self.path / PACKAGE.name / "data" / "sbatch" / name


def make_snapshot(layout: RunLayout, plugins: Sequence[Plugin] = ()) -> Snapshot:
    """Return the snapshot of hpcq and `plugins` as they are now, for jobs of the run; make it if it is missing."""
    files = {PACKAGE.name: _package_files(PACKAGE)}
    for plugin in plugins:
        files |= {plugin.package.name: _package_files(plugin.package), **_metadata(plugin)}
    digest = _digest(files)
    path = layout.packages / digest[:_NAME_CHARACTERS]
    with storage_errors(path):
        _link(layout.package_links / path.name, path)
        try:
            os.utime(path)
        except FileNotFoundError:
            _write(path, files)
            _remove_unused(layout)
        else:
            _restore(path, files)
    return Snapshot(path=path, digest=digest, commit=_commit())


def forget_snapshots(layout: RunLayout) -> None:
    """Remove the links of the run to all snapshots: it has no job that is pending or running."""
    for link in list_folder(layout.package_links):
        link.unlink(missing_ok=True)


def _package_files(package: Path) -> dict[str, bytes]:
    """Return the content of all files of a package by their relative path, without compiled modules."""
    found = {}
    for folder, folders, names in os.walk(package, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118 (hundreds of files, and a third of the time)
            with open(path, "rb") as file:  # noqa: PTH123
                found[path.removeprefix(f"{package}/")] = file.read()
    return found


def _metadata(plugin: Plugin) -> dict[str, dict[str, bytes]]:
    """Return name, version and entry points of a plugin, by which a job finds and checks it."""
    points = [f"[{group}]\n{point} = {value}\n" for group, point, value in plugin.entry_points]
    text = f"Metadata-Version: 2.1\nName: {plugin.distribution}\nVersion: {plugin.version}\n"
    folder = f"{plugin.distribution.replace('-', '_')}-{plugin.version}.dist-info"
    return {folder: {"entry_points.txt": "".join(points).encode(), "METADATA": text.encode()}}


def _commit() -> str:
    if not IS_CHECKOUT:
        return os.environ.get(COMMIT_VARIABLE, "")  # a job that submits
    command = ["git", "-C", str(PACKAGE), "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _digest(files: Mapping[str, Mapping[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for folder in sorted(files):
        for name in sorted(files[folder]):
            content = files[folder][name]
            digest.update(f"{folder}/{name}\0{len(content)}\0".encode(errors="surrogateescape"))
            digest.update(content)
    return digest.hexdigest()


def _write(path: Path, files: Mapping[str, Mapping[str, bytes]]) -> None:
    with committed_folder(path, is_private=True) as temporary:
        for folder, contents in files.items():
            for name, content in contents.items():
                target = temporary / folder / name
                # Jobs write compiled modules there: made by them, the folder could get the modes of a default ACL.
                (target.parent / "__pycache__").mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)


def _restore(path: Path, files: Mapping[str, Mapping[str, bytes]]) -> None:
    """Write the files of a snapshot again that are missing or were altered: sites delete files that are not used."""
    for folder, contents in files.items():
        for name, content in contents.items():
            target = path / folder / name
            if not _has_content(target, content):
                make_folder(target.parent)
                with committed_file(target) as temporary:
                    temporary.write_bytes(content)


def _has_content(path: Path, content: bytes) -> bool:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (hundreds of files, see `_package_files`)
            return file.read() == content
    except FileNotFoundError:
        return False


def _link(link: Path, target: Path) -> None:
    """Make `link`. It exists before its target is looked for, so that no other command removes the target."""
    if link.is_symlink():
        return
    make_folder(link.parent)
    temporary = temporary_path(link)
    temporary.symlink_to(target)
    temporary.replace(link)


def _remove_unused(layout: RunLayout) -> None:
    """Remove old snapshots to which no run has a link. What cannot be removed now is removed by a later call."""
    oldest = time.time() - _KEPT_S
    remove_stale_temporaries(layout.packages)
    for path in list_folder(layout.packages):
        with contextlib.suppress(OSError):
            if path.is_dir() and path.stat().st_mtime < oldest and not _is_linked(layout, path):
                removed = temporary_path(path)
                path.rename(removed)
                if _is_linked(layout, path):  # since the first look
                    removed.rename(path)
                else:
                    shutil.rmtree(removed, ignore_errors=True)


def _is_linked(layout: RunLayout, path: Path) -> bool:
    pattern = layout.package_links.relative_to(layout.folder) / path.name
    return any(link.is_symlink() and link.readlink() == path for link in layout.runs.glob(f"*/{pattern}"))
