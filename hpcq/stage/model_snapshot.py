"""Staging of a model's repository: choose the files, download and verify them, check the weights, write the marker."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from hpcq.catalog.checkpoint_problems import ADAPTER_FILE, IS_ADAPTER, is_pointer
from hpcq.catalog.safetensors_headers import headers_of
from hpcq.core.attempts import utc_now
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.frozen import dataclass
from hpcq.core.hub_cache import HubCache, RepoKind
from hpcq.core.outcomes import Launcher
from hpcq.core.processes import identity
from hpcq.core.snapshot_marker import Reference, SnapshotMarker
from hpcq.quantize.checkpoint_lock import LockOwner, lock_result
from hpcq.stage import hub_client
from hpcq.stage.hub_client import HubOfflineError, HubUnreachableError, RepoFile
from hpcq.stage.model_files import CONFIG, ModelFiles, choose_model_files
from hpcq.stage.progress import Item, ItemKind, Origin, SilentReporter, StagedItem, StageReporter
from hpcq.stage.retries import Notify
from hpcq.stage.snapshot import (
    Snapshot,
    check_space,
    check_writable,
    complete_marker,
    fetch_and_verify,
    missing_files,
    write_marker,
    write_ref,
)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json", "tekken.json")


@dataclass(frozen=True, kw_only=True)
class MissingBytes:
    """What staging would download.

    Attributes:
        files: Number of missing files.
        size: Their bytes.
        total: Bytes of all files of the snapshot.
    """

    files: int
    size: int
    total: int


def missing_bytes(repo_id: str, commit: str, cache: HubCache, *, notify: Notify = hub_client.ignore) -> MissingBytes:
    """Return what staging a model would download, with one request for the list and a few for the index.

    A model that is staged needs no request.

    Raises:
        UserInputError: No such model or commit, or not a model that can be evaluated.
        SetupError: The hub does not respond, or denies access.
    """
    snapshot = Snapshot(kind=RepoKind.MODEL, repo_id=repo_id, commit=commit, cache=cache)
    marker = complete_marker(snapshot)
    if marker:
        return MissingBytes(files=0, size=0, total=marker.size)
    files = _listed_files(snapshot, notify)
    missing = missing_files(snapshot, files)
    total = sum(file.size for file in files)
    return MissingBytes(files=len(missing), size=sum(file.size for file in missing), total=total)


def stage_model(
    repo_id: str,
    commit: str,
    cache: HubCache,
    *,
    revision: str | None = None,
    reporter: StageReporter | None = None,
    owner: LockOwner | None = None,
) -> StagedItem:
    """Stage a model, or return immediately if it is staged. One process at a time stages a snapshot; others wait.

    Args:
        repo_id: Id on the hub.
        commit: Commit.
        cache: Where to stage.
        revision: Branch or tag that was resolved to the commit; recorded in the cache for use without the hub.
        reporter: Receives progress, retries and the result.
        owner: Owner of the lock: the attempt of a stage unit; None: this process.

    Raises:
        UserInputError: No such model or commit, or not a model that can be evaluated.
        SetupError: The hub does not respond, denies access, the cache cannot be written, space is missing, or a file
            differs from the hub's.
        StorageError: The disk is full.
    """
    begin_s = time.monotonic()
    snapshot = Snapshot(kind=RepoKind.MODEL, repo_id=repo_id, commit=commit, cache=cache)
    work = _Work(snapshot=snapshot, reporter=reporter or SilentReporter())
    marker, downloaded, origin = complete_marker(snapshot), 0, Origin.STAGED
    if marker is None:
        check_writable(snapshot, snapshot.marker.parent)
        with lock_result(
            snapshot.marker,
            owner or process_owner(f"stage {repo_id}"),
            work.note,
            is_complete=lambda: complete_marker(snapshot) is not None,
            noun="snapshot",
        ) as has_lock:
            if has_lock:
                marker, downloaded = work.run()
                origin = Origin.DOWNLOADED if downloaded else Origin.ADOPTED
    marker = marker or complete_marker(snapshot)
    if marker is None:
        raise SetupError(f"{snapshot}: files were removed from {snapshot.folder} while it was staged: stage it again.")
    if revision is not None:
        write_ref(snapshot, revision)
    staged = StagedItem(
        item=work.item,
        origin=origin,
        size=marker.size,
        downloaded=downloaded,
        seconds=time.monotonic() - begin_s,
        note="not compared with the hub" if marker.compared_with is Reference.CACHE else None,
    )
    work.reporter.finished(staged)
    return staged


def process_owner(unit: str) -> LockOwner:
    """Return this process as the owner of a lock, for a command that is not an attempt of a unit."""
    return LockOwner(
        unit=unit,
        launcher=Launcher.LOCAL,
        node=socket.gethostname(),
        process=identity(os.getpid()) or "",
        job_id="",
        restart=0,
        time=utc_now(),
        token=os.urandom(8).hex(),
    )


@dataclass(frozen=True, kw_only=True)
class _Work:
    """Staging of one snapshot by the owner of its lock."""

    snapshot: Snapshot
    reporter: StageReporter

    @property
    def item(self) -> Item:
        return Item(kind=ItemKind.MODEL, name=self.snapshot.repo_id, commit=self.snapshot.commit)

    def note(self, text: str) -> None:
        self.reporter.note(self.item, text)

    def run(self) -> tuple[SnapshotMarker, int]:
        """Return the marker and the number of bytes that were downloaded."""
        snapshot = self.snapshot
        try:
            files, compared_with = _listed_files(snapshot, self.note), Reference.HUB
        except (HubUnreachableError, HubOfflineError) as error:
            files, compared_with = _files_in_cache(snapshot, error), Reference.CACHE
        missing = missing_files(snapshot, files)
        hub_client.remove_partial_files(snapshot.kind, snapshot.repo_id, snapshot.cache)
        check_space(snapshot, missing)
        if missing:
            check_writable(snapshot, snapshot.cache.repository(snapshot.kind, snapshot.repo_id))
            self._check_access(max(missing, key=lambda file: file.size).path)
        digests = fetch_and_verify(snapshot, files, compared_with, self.item, self.reporter)
        _check_weights(snapshot, digests)
        return write_marker(snapshot, digests, compared_with), sum(file.size for file in missing)

    def _check_access(self, path: str) -> None:
        """Check the access with a file of weights: the model card of a gated repository may be public."""
        snapshot = self.snapshot
        hub_client.check_access(snapshot.kind, snapshot.repo_id, snapshot.commit, path, notify=self.note)


def _listed_files(snapshot: Snapshot, notify: Notify) -> tuple[RepoFile, ...]:
    """Return the files to stage as the hub lists them."""
    listed = hub_client.list_files(snapshot.kind, snapshot.repo_id, snapshot.commit, notify=notify)
    by_path = {file.path: file for file in listed}
    chosen = choose_model_files(by_path)
    _refuse_other_content(snapshot, by_path, chosen)
    shards = chosen.weights
    if chosen.index:
        hub_client.fetch_files(
            snapshot.kind, snapshot.repo_id, snapshot.commit, [chosen.index], snapshot.cache, notify=notify
        )
        shards = _shards(snapshot, chosen.index)
    absent = [name for name in shards if name not in by_path]
    if absent:
        raise UserInputError(
            f"{snapshot}: the repository lacks {_few(absent)}, which {chosen.index} lists: use another repository."
        )
    return tuple(by_path[path] for path in sorted({*chosen.others, *shards}))


def _refuse_other_content(snapshot: Snapshot, paths: Iterable[str], chosen: ModelFiles) -> None:
    """Refuse a repository that is not a model."""
    if ADAPTER_FILE in paths and not (CONFIG in paths and chosen.has_weights):
        raise UserInputError(f"{snapshot}: the repository {IS_ADAPTER}")
    if CONFIG not in paths or not chosen.has_weights:
        lacks = "config.json" if CONFIG not in paths else "weights in *.safetensors or *.bin files"
        raise UserInputError(
            f"{snapshot}: the repository has no {lacks} (only {', '.join(chosen.found) or 'nothing'}): use the "
            f"repository with the model in the format of transformers."
        )
    if chosen.lacks_index or not chosen.has_tokenizer:
        lacks = "index of its shards (*.index.json)" if chosen.lacks_index else "tokenizer"
        raise UserInputError(
            f"{snapshot}: the repository has no {lacks}, so transformers cannot load it: use another repository."
        )


def _shards(snapshot: Snapshot, index: str) -> tuple[str, ...]:
    """Return the names of the shards in the index."""
    return tuple(sorted(set(_weight_map(snapshot, index).values())))


def _weight_map(snapshot: Snapshot, index: str) -> Mapping[str, str]:
    try:
        found = json.loads((snapshot.folder / index).read_text(encoding="utf-8"))["weight_map"]
        shards = {str(name): str(shard) for name, shard in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserInputError(f"{snapshot}: {index} has no valid 'weight_map': use another repository.") from error
    return shards


def _files_in_cache(snapshot: Snapshot, error: Exception) -> tuple[RepoFile, ...]:
    """Return the files that another program has downloaded, with the digests that are the names of their contents.

    Raises:
        SetupError: The model is not complete; the message also has the reason why the hub was not used.
    """
    paths = sorted(path for path in snapshot.folder.rglob("*") if path.is_file())
    by_path = {path.relative_to(snapshot.folder).as_posix(): path for path in paths}
    chosen = choose_model_files(by_path)
    shards = _shards(snapshot, chosen.index) if chosen.index else chosen.weights
    lacking = [name for name in (CONFIG, *shards) if name not in by_path]
    lacking += [] if shards else ["weights"]
    lacking += [] if any(name in by_path for name in _TOKENIZER_FILES) else ["a tokenizer"]
    if lacking:
        reason = str(error).removeprefix(f"{snapshot}: ")
        raise type(error)(f"{snapshot}: the cache {snapshot.cache.hub} lacks {_few(lacking)}, and {reason}") from error
    return tuple(_cached_file(name, by_path[name]) for name in sorted({*chosen.others, *shards}))


_SHA256_DIGITS, _BLOB_ID_DIGITS = 64, 40
_WEIGHT_SUFFIXES = (".safetensors", ".bin")


def _cached_file(name: str, path: Path) -> RepoFile:
    """Return a file; its digest is the name of its content, if the cache has links."""
    etag = path.readlink().name if path.is_symlink() else ""
    return RepoFile(
        path=name,
        size=path.stat().st_size,
        sha256=etag if len(etag) == _SHA256_DIGITS else None,
        blob_id=etag if len(etag) == _BLOB_ID_DIGITS else "",
    )


def _check_weights(snapshot: Snapshot, names: Collection[str]) -> None:
    """Check that the weights are not Git LFS pointers, and that their headers agree with the files and the index.

    Raises:
        UserInputError: They do not: the repository itself is damaged.
    """
    pointers = [name for name in names if name.endswith(_WEIGHT_SUFFIXES) and is_pointer(snapshot.folder / name)]
    if pointers:
        raise UserInputError(
            f"{snapshot}: {_few(sorted(pointers))} in the repository is a Git LFS pointer, and the file itself was"
            " not uploaded: use another repository or revision."
        )
    tensors: dict[str, str] = {}
    for name in sorted(name for name in names if name.endswith(".safetensors")):
        tensors.update(dict.fromkeys(_tensor_names(snapshot, name), name))
    for index in (name for name in names if name.endswith(".safetensors.index.json")):
        weight_map = _weight_map(snapshot, index)
        wrong = [tensor for tensor, shard in weight_map.items() if tensors.get(tensor) != shard]
        if wrong:
            raise UserInputError(
                f"{snapshot}: {index} lists {_few(wrong)}, which its shards lack: use another repository."
            )


def _tensor_names(snapshot: Snapshot, name: str) -> list[str]:
    """Return the tensors in a safetensors file whose size agrees with its header."""
    try:
        return [header.name for header in headers_of(snapshot.folder / name)]
    except ValueError as error:
        raise UserInputError(f"{snapshot}: {error}: use another repository.") from error


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if names[1:] else ""
    return f"'{names[0]}'{more}"
