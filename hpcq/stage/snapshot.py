"""Snapshots of repositories in the hub's cache: download, verification, and the completion marker.

A snapshot is complete only if its completion marker exists and all files that it lists have their sizes. The marker is
written last, after the digest of each file was compared with the hub's: the SHA-256 of LFS files, git's blob id of the
others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from hpcq.core.attempts import utc_now
from hpcq.core.digests import digest_of_model_files, known_digest, remember_digest
from hpcq.core.errors import SetupError, StorageError
from hpcq.core.files import fsync, storage_errors, write_text
from hpcq.core.frozen import dataclass
from hpcq.core.hub_cache import HubCache, RepoKind
from hpcq.core.permissions import user_name
from hpcq.core.snapshot_marker import MarkedFile, Reference, SnapshotMarker, read_snapshot_marker
from hpcq.stage import hub_client
from hpcq.stage.hub_client import RepoFile
from hpcq.stage.progress import Item, Phase, StageProgress, StageReporter

PARALLEL_FILES = 8
POLL_INTERVAL_S = 0.5
MARGIN_BYTES = 256 * 2**20
"""Free space that must remain after a download."""

_OTHER_FOLDER = "set another folder ([paths] cache, or HF_HOME)"
_CHUNK_BYTES = 8 * 2**20
_INODES_PER_FILE = 4
"""Content, link, lock and partial file."""

_TRIES = 2
"""A file whose content differs from the hub's is downloaded once more."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A repository at a commit, in a cache."""

    kind: RepoKind
    repo_id: str
    commit: str
    cache: HubCache

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.commit[:12]}"

    @property
    def folder(self) -> Path:
        """Folder of the files."""
        return self.cache.snapshot(self.kind, self.repo_id, self.commit)

    @property
    def marker(self) -> Path:
        """Completion marker."""
        return self.cache.marker(self.kind, self.repo_id, self.commit)


def read_marker(snapshot: Snapshot) -> SnapshotMarker | None:
    """Return the completion marker; None if there is none or it cannot be parsed."""
    try:
        return read_snapshot_marker(snapshot.marker)
    except (OSError, ValueError):
        return None


def write_marker(snapshot: Snapshot, digests: Mapping[str, str], compared_with: Reference) -> SnapshotMarker:
    """Commit the completion marker of a snapshot.

    Args:
        snapshot: The snapshot.
        digests: SHA-256 of each verified file, by path.
        compared_with: What they were compared with.

    Raises:
        StorageError: The folder of markers cannot be written.
    """
    marker = SnapshotMarker(
        files=tuple(
            MarkedFile(path=path, size=(snapshot.folder / path).stat().st_size, sha256=digest)
            for path, digest in sorted(digests.items())
        ),
        digest=digest_of_model_files(digests),
        compared_with=compared_with,
    )
    facts = {"kind": snapshot.kind, "repository": snapshot.repo_id, "commit": snapshot.commit, "time": utc_now()}
    document = {"schema": 1, **facts, "endpoint": hub_client.endpoint(), **asdict(marker)}
    write_text(snapshot.marker, json.dumps(document, indent=1) + "\n")
    return marker


def is_staged(kind: RepoKind, repo_id: str, commit: str, cache: HubCache) -> bool:
    """Return whether a snapshot is complete: its marker exists, and the files that it lists have their sizes."""
    return _is_complete(Snapshot(kind=kind, repo_id=repo_id, commit=commit, cache=cache))


def complete_marker(snapshot: Snapshot) -> SnapshotMarker | None:
    """Return the marker of a complete snapshot; None if it is not complete."""
    marker = read_marker(snapshot)
    if marker is None or not marker.files:
        return None
    return marker if all(_has_size(snapshot.folder / file.path, file.size) for file in marker.files) else None


def _is_complete(snapshot: Snapshot) -> bool:
    return complete_marker(snapshot) is not None


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def missing_files(snapshot: Snapshot, files: Iterable[RepoFile]) -> tuple[RepoFile, ...]:
    """Return the ones of `files` that are missing in the snapshot, or have another size there."""
    return tuple(file for file in files if not _has_size(snapshot.folder / file.path, file.size))


def check_writable(snapshot: Snapshot, path: Path) -> None:
    """Check that this user can create `path`, which is in the cache: another user may own it, or it is read-only.

    Raises:
        SetupError: The user cannot.
    """
    folder = _existing(path)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SetupError(
            f"{snapshot}: not staged, and you cannot write to {folder}, which belongs to "
            f"{user_name(folder.stat().st_uid)}: let the owner stage it, or {_OTHER_FOLDER}."
        )


def _existing(path: Path) -> Path:
    """Return the folder itself, or the nearest parent that exists."""
    return next(part for part in (path, *path.parents) if part.is_dir())


def check_space(snapshot: Snapshot, missing: Sequence[RepoFile]) -> None:
    """Check that the file system has space and inodes for the missing files.

    Raises:
        SetupError: Space or inodes are missing.
    """
    folder = _existing(snapshot.cache.hub)
    status = os.statvfs(folder)
    free, needed = status.f_bavail * status.f_frsize, sum(file.size for file in missing) + MARGIN_BYTES
    fix = f"free some, or {_OTHER_FOLDER}."
    if missing and free < needed:
        raise SetupError(
            f"{snapshot}: {_gigabytes(needed)} of space are needed in {folder}, which has {_gigabytes(free)}: {fix}"
        )
    inodes = _INODES_PER_FILE * len(missing)
    if status.f_files and status.f_favail < inodes:  # some file systems report 0 files: no limit
        raise SetupError(
            f"{snapshot}: {inodes} inodes are needed in {folder}, which has {status.f_favail} free ones: {fix}"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def fetch_and_verify(
    snapshot: Snapshot, files: Sequence[RepoFile], compared_with: Reference, item: Item, reporter: StageReporter
) -> dict[str, str]:
    """Download the missing ones of `files`, verify all, and return the SHA-256 of each by path.

    Several files are downloaded at once. Each is verified immediately after its download.

    Args:
        snapshot: The snapshot.
        files: Files as the hub, or the cache, lists them.
        compared_with: Whether the hub or the cache lists them. A file that the cache lists is not downloaded again.
        item: For the reports.
        reporter: Receives progress and retries.

    Raises:
        UserInputError: No such repository, commit or file.
        SetupError: The hub does not respond, denies access, or a file differs from the hub's.
        StorageError: The disk is full, or the folder is not writable.
    """
    transfer = _Transfer(snapshot, compared_with)
    missing = missing_files(snapshot, files)
    pool = ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="stage")
    pending: dict[Future[str], RepoFile] = {}
    with storage_errors(snapshot.cache.hub), hub_client.quiet_client():
        try:
            pending |= {pool.submit(transfer.fetch, file): file for file in sorted(files, key=lambda file: -file.size)}
            _wait(pending, lambda: _report(transfer, item, files, missing, reporter))
        except BaseException:
            transfer.stop()
            hub_client.abort_transfers()
            raise
        finally:
            # After an interrupt a thread may wait for the hub until the client's read timeout: do not wait for it.
            pool.shutdown(wait=False, cancel_futures=True)
        return {file.path: future.result() for future, file in pending.items()}


def _wait(pending: Iterable[Future[str]], report: Callable[[], None]) -> None:
    """Wait until all downloads have ended. After the first failure no further one begins, and its error is raised."""
    running, error = set(pending), None
    while running:
        done, running = wait(running, timeout=POLL_INTERVAL_S, return_when=FIRST_COMPLETED)
        report()
        failed = (future.exception() for future in done if not future.cancelled())
        error = error or next(filter(None, failed), None)
        if error is not None:
            running = {future for future in running if not future.cancel()}
    if error is not None:
        raise error


def _report(
    transfer: _Transfer,
    item: Item,
    files: Sequence[RepoFile],
    missing: Sequence[RepoFile],
    reporter: StageReporter,
) -> None:
    """Report what the pool's threads have noted, and store the digests that they have computed."""
    for text in transfer.take_notes():
        reporter.note(item, text)
    for path, digest in transfer.take_digests():
        remember_digest(path, digest)
    reporter.progress(transfer.progress(item, files, missing))


class _Transfer:
    """Downloads and verifications of one snapshot in the threads of a pool; the pool's owner collects the results.

    Attributes:
        snapshot: The snapshot.
    """

    def __init__(self, snapshot: Snapshot, compared_with: Reference) -> None:
        self.snapshot = snapshot
        self._compared_with = compared_with
        self._stop = threading.Event()
        self._notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._digests: queue.SimpleQueue[tuple[Path, str]] = queue.SimpleQueue()
        self._verified: dict[str, int] = {}

    def fetch(self, file: RepoFile) -> str:
        """Download a file if it is missing, and return its SHA-256."""
        path = self.snapshot.folder / file.path
        for _ in range(_TRIES):
            self._download(file)
            digest = self._verify(path, file)
            if digest is not None:
                self._digests.put((path, digest))
                return digest
            if self._compared_with is Reference.CACHE:
                raise SetupError(
                    f"{path}: the digest of the content differs from its name in the cache: stage it with a network."
                )
            self._notes.put(f"{self.snapshot}: the content of {file.path} differs from the hub's; it is removed")
            _remove_content(path, self.snapshot.cache.hub)
        raise SetupError(
            f"{self.snapshot}: the content of {file.path} differs from the hub's after {_TRIES} downloads: check the "
            f"proxy between this machine and {hub_client.endpoint()}, and the disk of {self.snapshot.cache.hub}."
        )

    def _download(self, file: RepoFile) -> None:
        where = self.snapshot
        hub_client.download_file(
            where.kind, where.repo_id, where.commit, file.path, where.cache, notify=self._notes.put, wait=self._wait
        )

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise SetupError(f"{self.snapshot}: the download was stopped.")

    def _verify(self, path: Path, file: RepoFile) -> str | None:
        """Return the SHA-256 if size and digest are right, after the content is on the disk; else None."""
        size = path.stat().st_size
        if size != file.size:
            return None
        known = known_digest(path)
        if known is not None and known == file.sha256:
            self._verified[file.path] = size
            return known
        fsync(path)
        sha256, blob_id = self._hash(path, file)
        is_right = sha256 == file.sha256 if file.sha256 else file.blob_id in (blob_id, "")
        return sha256 if is_right else None

    def _hash(self, path: Path, file: RepoFile) -> tuple[str, str]:
        """Return the SHA-256 and git's id of the content, from one pass over the file."""
        sha256 = hashlib.sha256()
        blob = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
        digests = [sha256] if file.sha256 else [sha256, blob]
        done = 0
        with path.open("rb", buffering=0) as content:
            while chunk := content.read(_CHUNK_BYTES):
                if self._stop.is_set():
                    raise SetupError(f"{self.snapshot}: the verification was stopped.")
                for digest in digests:
                    digest.update(chunk)
                done += len(chunk)
                self._verified[file.path] = done
        return sha256.hexdigest(), blob.hexdigest()

    def take_notes(self) -> list[str]:
        """Return the lines since the last call."""
        return list(_drain(self._notes))

    def take_digests(self) -> list[tuple[Path, str]]:
        """Return the files that were verified since the last call, and their SHA-256."""
        return list(_drain(self._digests))

    def progress(self, item: Item, files: Sequence[RepoFile], missing: Sequence[RepoFile]) -> StageProgress:
        """Return the phase and its bytes: the download, until it is complete; then the verification."""
        total, to_load = sum(file.size for file in files), sum(file.size for file in missing)
        where = self.snapshot
        loading = [file for file in missing if file.path not in self._verified]
        loaded = to_load - sum(file.size for file in loading)
        loaded += hub_client.bytes_in_cache(where.kind, where.repo_id, loading, where.cache) if loading else 0
        if loaded < to_load:
            return StageProgress(item=item, phase=Phase.DOWNLOADING, done=total - to_load + loaded, total=total)
        return StageProgress(item=item, phase=Phase.VERIFYING, done=sum(self._verified.values()), total=total)

    def stop(self) -> None:
        """End waits and verifications in the pool's threads."""
        self._stop.set()


def _drain(items: queue.SimpleQueue[T]) -> Iterator[T]:
    with contextlib.suppress(queue.Empty):
        while True:
            yield items.get_nowait()


def _remove_content(path: Path, root: Path) -> None:
    """Remove a file of a snapshot and the contents that it links to, if they are in the cache."""
    real_root = root.resolve()
    while True:
        target = Path(os.path.normpath(path.parent / path.readlink())) if path.is_symlink() else None
        path.unlink(missing_ok=True)
        if target is None or not target.parent.resolve().is_relative_to(real_root):
            return
        path = target


def write_ref(snapshot: Snapshot, revision: str) -> None:
    """Record the commit of a branch or tag in the cache's refs, as the hub's client does, for use without the hub.

    If the cache cannot be written, nothing is recorded.
    """
    if hub_client.is_commit(revision) or ".." in revision:
        return
    ref = snapshot.cache.repository(snapshot.kind, snapshot.repo_id) / "refs" / revision
    found = hub_client.read_ref(ref)
    if found is None or found[0] != snapshot.commit:
        with contextlib.suppress(StorageError):
            write_text(ref, snapshot.commit)
