"""Client of the hub: commits, file lists, access, and single files of repositories.

It is the only module that uses huggingface_hub. Requests that fail with a transient error are repeated
(`hpcq.stage.retries`). All other errors become an exception whose message has the repository, the revision and the fix.
huggingface_hub reads the token from HF_TOKEN or from its own file and adds it to requests; hpcq only checks whether
there is one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from hpcq.core.error_classification import causes
from hpcq.core.errors import ConnectionLostError, HpcqError, SetupError, UserInputError
from hpcq.core.files import storage_errors
from hpcq.core.frozen import dataclass
from hpcq.core.hub_cache import DEFAULT_REVISION, HubCache, RepoKind
from hpcq.stage.interruptible import interruptible
from hpcq.stage.retries import (
    RETRY_VARIABLE,
    Notify,
    Retries,
    RetryPolicy,
    describe,
    is_transient,
    is_unreachable,
    requested_wait_s,
    status_of,
)

INFO_TIMEOUT_S = 30.0
"""Timeout of requests for metadata. huggingface_hub itself has none for most of them."""

_UNREACHABLE_MEMORY_S = 60.0
"""After a request could not connect, further requests are not repeated for this time."""

_BLOCK_SIZE = 512
"""Unit of st_blocks (stat(2))."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{6,39}")

Result = TypeVar("Result")


class HubUnreachableError(ConnectionLostError):
    """No connection to the hub can be made."""


class HubOfflineError(SetupError):
    """HF_HUB_OFFLINE is set."""


class MissingFileError(UserInputError):
    """The repository has no such file."""


class MissingCommitError(UserInputError):
    """The repository does not have this commit."""


class _TransferError(ConnectionError):
    """hf_xet (1.8) raises a RuntimeError if its server does not respond or a connection is lost."""


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """The commit of a revision.

    Attributes:
        commit: The commit, 40 hexadecimal digits.
        requested: The branch, tag or commit that was requested.
        is_offline: Whether the commit is from the cache's refs, because the hub cannot be reached.
        note: Remark for the user; None if the hub gave the commit.
    """

    commit: str
    requested: str
    is_offline: bool = False
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class RepoFile:
    """A file of a repository at a commit.

    Attributes:
        path: Path in the repository.
        size: Size in bytes.
        sha256: SHA-256 of the content, known for LFS files.
        blob_id: Git's id of the blob; for an LFS file, of its pointer.
    """

    path: str
    size: int
    sha256: str | None
    blob_id: str

    @property
    def etag(self) -> str:
        """Name of the file's content in the cache's folder `blobs`."""
        return self.sha256 or self.blob_id


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Subject of a request, for messages."""

    kind: RepoKind
    repo_id: str
    revision: str
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision[:12] if _COMMIT.fullmatch(self.revision) else self.revision}"

    @property
    def noun(self) -> str:
        return "data set" if self.kind is RepoKind.DATASET else "model"

    @property
    def url(self) -> str:
        folder = "datasets/" if self.kind is RepoKind.DATASET else ""
        return f"{endpoint()}/{folder}{self.repo_id}"


def endpoint() -> str:
    """Return the URL of the hub (HF_ENDPOINT)."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def is_offline() -> bool:
    """Return whether the user has set HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def ignore(_: str) -> None:
    """Ignore the line of a retry."""


def resolve(
    kind: RepoKind, repo_id: str, revision: str | None, cache: HubCache, *, notify: Notify = ignore
) -> Resolution:
    """Return the commit of a branch, tag or commit; a full commit needs no request.

    Args:
        kind: Kind of the repository.
        repo_id: Its id.
        revision: Branch, tag or commit; None: main.
        cache: Its refs give the commit if the hub cannot be reached.
        notify: Called with one line per retry.

    Raises:
        UserInputError: No such repository or revision.
        SetupError: The hub does not respond, or denies access.
    """
    requested = revision or DEFAULT_REVISION
    place = _Place(kind=kind, repo_id=repo_id, revision=requested)
    if _COMMIT.fullmatch(requested.lower()):
        return Resolution(commit=requested.lower(), requested=requested)
    try:
        commit = _info(place, notify).sha
    except (HubUnreachableError, HubOfflineError) as error:
        return _resolve_in_cache(place, cache, error)
    return Resolution(commit=_checked_commit(place, commit), requested=requested)


def list_files(kind: RepoKind, repo_id: str, commit: str, *, notify: Notify = ignore) -> tuple[RepoFile, ...]:
    """Return all files of a repository at `commit`, with one request.

    Raises:
        UserInputError: No such repository or commit.
        SetupError: The hub does not respond, or denies access.
    """
    place = _Place(kind=kind, repo_id=repo_id, revision=commit)
    info = _info(place, notify, files_metadata=True)
    return tuple(
        RepoFile(
            path=found.rfilename,
            size=found.size,
            sha256=found.lfs.sha256 if found.lfs else None,
            blob_id=found.blob_id,
        )
        for found in info.siblings or ()
    )


def check_access(kind: RepoKind, repo_id: str, commit: str, file: str, *, notify: Notify = ignore) -> None:
    """Check with one request that the user may read a file of a repository.

    The file list of a gated repository does not show this, because it is public.

    Raises:
        UserInputError: No such repository, commit or file.
        SetupError: The hub does not respond, or denies access.
    """
    import huggingface_hub

    place = _Place(kind=kind, repo_id=repo_id, revision=commit, file=file)
    url = huggingface_hub.hf_hub_url(repo_id, file, repo_type=kind.value, revision=commit)
    with quiet_client():
        _request(place, lambda: huggingface_hub.get_hf_file_metadata(url, timeout=INFO_TIMEOUT_S), notify)


def fetch_files(
    kind: RepoKind,
    repo_id: str,
    commit: str,
    names: Iterable[str],
    cache: HubCache,
    *,
    optional: Iterable[str] = (),
    notify: Notify = ignore,
) -> Path:
    """Download small files to the hub's cache, without a request for those that are there.

    Args:
        kind: Kind of the repository.
        repo_id: Its id.
        commit: The commit.
        names: Paths of files that must exist in the repository.
        cache: The cache.
        optional: Paths of files that may be missing in the repository or, without the hub, in the cache.
        notify: Called with one line per retry.

    Returns:
        The folder of the snapshot.

    Raises:
        UserInputError: No such repository, commit or file.
        SetupError: The hub does not respond, denies access, or the disk is full.
    """
    with quiet_client():
        for name in names:
            download_file(kind, repo_id, commit, name, cache, notify=notify)
        for name in optional:
            if not _is_known_to_be_missing(kind, repo_id, commit, name, cache):
                with contextlib.suppress(MissingFileError, HubOfflineError, HubUnreachableError):
                    download_file(kind, repo_id, commit, name, cache, notify=notify)
    return cache.snapshot(kind, repo_id, commit)


def download_file(
    kind: RepoKind,
    repo_id: str,
    commit: str,
    name: str,
    cache: HubCache,
    *,
    notify: Notify = ignore,
    wait: Callable[[float], object] = time.sleep,
) -> Path:
    """Download one file to the hub's cache, if it is not there, and return its path. Call it within `quiet_client`.

    Args:
        kind: Kind of the repository.
        repo_id: Its id.
        commit: The commit.
        name: Path in the repository.
        cache: The cache.
        notify: Called with one line per retry.
        wait: Waits before a retry.

    Raises:
        MissingFileError: The repository has no such file.
        UserInputError: No such repository or commit.
        SetupError: The hub does not respond, denies access, or the disk is full.
    """
    path = cache.snapshot(kind, repo_id, commit) / name
    if path.exists():
        return path
    import huggingface_hub

    def download() -> str:
        options = {"repo_type": kind.value, "revision": commit, "etag_timeout": INFO_TIMEOUT_S}
        try:
            return str(huggingface_hub.hf_hub_download(repo_id, name, cache_dir=cache.hub, **options))
        except RuntimeError as error:
            raise _TransferError(str(error)) from error

    place = _Place(kind=kind, repo_id=repo_id, revision=commit, file=name)
    with storage_errors(cache.hub):
        return Path(_request(place, download, notify, wait))


def abort_transfers() -> None:
    """Close the connections. Downloads in other threads fail soon: if nothing arrives, after the read timeout."""
    import huggingface_hub

    huggingface_hub.close_session()
    with contextlib.suppress(ImportError):  # not public (1.33), and missing in 1.0, whose hf_xet sees the signal itself
        from huggingface_hub.utils._xet import abort_xet_session

        abort_xet_session()


def remove_partial_files(kind: RepoKind, repo_id: str, cache: HubCache) -> None:
    """Remove partial downloads of killed processes: huggingface_hub (1.33) never continues a file with a random name.

    huggingface_hub holds a lock per file while it downloads. A file stays if its lock is held, or if the file system
    has no locks.
    """
    repository = cache.repository(kind, repo_id)
    for partial in repository.glob("blobs/*.*.incomplete"):
        lock = cache.hub / ".locks" / repository.name / f"{partial.name.partition('.')[0]}.lock"
        with contextlib.suppress(OSError), lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()


def bytes_in_cache(kind: RepoKind, repo_id: str, files: Iterable[RepoFile], cache: HubCache) -> int:
    """Return how many bytes of the files' contents the cache has, including those of running downloads."""
    sizes = {file.etag: file.size for file in files}
    found = dict.fromkeys(sizes, 0)
    with contextlib.suppress(OSError), os.scandir(cache.repository(kind, repo_id) / "blobs") as blobs:
        for blob in blobs:
            etag, _, rest = blob.name.partition(".")
            if etag in sizes:
                # A file may be longer than what has been written to it.
                status = blob.stat()
                written = min(status.st_size, status.st_blocks * _BLOCK_SIZE, sizes[etag])
                found[etag] = max(found[etag], written if rest else sizes[etag])
    return sum(found.values())


def is_commit(revision: str) -> bool:
    """Return whether `revision` is a full commit."""
    return _COMMIT.fullmatch(revision) is not None


@contextlib.contextmanager
def quiet_client() -> Iterator[None]:
    """Switch off the progress bars and warnings of huggingface_hub in the block: retries are reported by hpcq."""
    from huggingface_hub import utils

    logger = logging.getLogger("huggingface_hub")
    level, had_bars = logger.level, not utils.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    if had_bars:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if had_bars:
            utils.enable_progress_bars()


def _info(place: _Place, notify: Notify, *, files_metadata: bool = False) -> Any:
    """Return huggingface_hub's ModelInfo or DatasetInfo."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    request = api.dataset_info if place.kind is RepoKind.DATASET else api.model_info
    options = {"revision": place.revision, "timeout": INFO_TIMEOUT_S, "files_metadata": files_metadata}
    with quiet_client():
        return _request(place, lambda: request(place.repo_id, **options), notify)


def _is_known_to_be_missing(kind: RepoKind, repo_id: str, commit: str, name: str, cache: HubCache) -> bool:
    """Return whether the cache has recorded that the repository has no such file."""
    return (cache.repository(kind, repo_id) / ".no_exist" / commit / name).exists()


def _resolve_in_cache(place: _Place, cache: HubCache, error: HpcqError) -> Resolution:
    """Return the commit that the cache's refs have for a branch or tag."""
    ref = cache.repository(place.kind, place.repo_id) / "refs" / place.revision
    found = read_ref(ref) if ".." not in place.revision else None
    if found is None:
        reason = str(error).removeprefix(f"{place}: ")
        message = f"{place}: the cache {cache.hub} has no commit for '{place.revision}', and {reason}"
        raise type(error)(message) from error
    commit, time_of_ref = found
    note = f"offline: '{place.revision}' is the commit of {time_of_ref:%Y-%m-%d %H:%M} UTC in the cache"
    return Resolution(commit=commit, requested=place.revision, is_offline=True, note=note)


def read_ref(ref: Path) -> tuple[str, datetime.datetime] | None:
    """Return the commit in a file of the cache's folder `refs`, and when it was written; None: no valid file."""
    try:
        commit = ref.read_text(encoding="ascii").strip()
        written = datetime.datetime.fromtimestamp(ref.stat().st_mtime, datetime.UTC)
    except (OSError, ValueError):
        return None
    return (commit, written) if is_commit(commit) else None


def _checked_commit(place: _Place, commit: object) -> str:
    if isinstance(commit, str) and is_commit(commit):
        return commit
    raise SetupError(f"{place}: {_no_hub()}")


def _no_hub() -> str:
    return f"the answer of {endpoint()} is not that of a hub: check HF_ENDPOINT and the proxy settings (https_proxy)."


class _Contact:
    """Whether the hub has responded to this process, so that a command waits only once for a missing network."""

    def __init__(self) -> None:
        self._has_answered = False
        self._failed_s: float | None = None

    def policy(self) -> RetryPolicy:
        """Return the time limits of the next request."""
        policy = RetryPolicy.from_environment()
        if self._failed_s is not None and time.monotonic() - self._failed_s < _UNREACHABLE_MEMORY_S:
            return dataclasses.replace(policy, unreachable_s=0)
        return dataclasses.replace(policy, unreachable_s=policy.total_s) if self._has_answered else policy

    def succeeded(self) -> None:
        """Record that the hub has responded."""
        self._has_answered, self._failed_s = True, None

    def failed(self) -> None:
        """Record that no connection could be made."""
        self._failed_s = time.monotonic()


_contact = _Contact()


def _request(
    place: _Place, send: Callable[[], Result], notify: Notify, wait: Callable[[float], object] = time.sleep
) -> Result:
    """Send a request, with retries, and raise one sentence if it fails."""
    policy = _contact.policy()
    retries = Retries(policy=policy, notify=lambda text: notify(f"{place}: {text}"), wait=wait)
    try:
        result = retries.run(lambda: interruptible(send), _error_types())
    except _error_types() as error:
        if is_unreachable(error):
            _contact.failed()
        if isinstance(error, OSError) and error.errno is not None and not is_transient(error):
            raise  # an error of the file system
        raise _explain(error, place, policy) from error
    _contact.succeeded()
    return result


def _error_types() -> tuple[type[Exception], ...]:
    """Return the types that huggingface_hub raises: its own, and those of its HTTP library (httpx; httpx2 from 2.0)."""
    from huggingface_hub import errors

    http_error = next(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    return (http_error, OSError, errors.HFValidationError, json.JSONDecodeError)


def _explain(error: Exception, place: _Place, policy: RetryPolicy) -> HpcqError:
    """Return the exception for the user: by huggingface_hub's type, else by the HTTP status, else by the connection."""
    return _explain_type(error, place) or _explain_status(error, place, policy)


def _explain_type(error: Exception, place: _Place) -> HpcqError | None:
    from huggingface_hub import errors

    explanations: tuple[tuple[type, Callable[[_Place], HpcqError]], ...] = (
        (errors.OfflineModeIsEnabled, _offline),
        (errors.GatedRepoError, _gated),
        (errors.DisabledRepoError, _disabled),
        (errors.RepositoryNotFoundError, _no_repository),
        (errors.RevisionNotFoundError, _no_revision),
        (errors.RemoteEntryNotFoundError, _no_file),
        (errors.HFValidationError, _no_id),
        (errors.FileMetadataError, _wrong_answer),
        (json.JSONDecodeError, _wrong_answer),
    )
    found = (explain for cause in causes(error) for kind, explain in explanations if isinstance(cause, kind))
    return next((explain(place) for explain in found), None)


def _explain_status(error: Exception, place: _Place, policy: RetryPolicy) -> HpcqError:
    status = status_of(error)
    if is_unreachable(error):
        return HubUnreachableError(
            f"{place}: {endpoint()} cannot be reached: check the network and the proxy settings (https_proxy), or run "
            f"`hpcq stage` on a machine with a network."
        )
    wait_s = requested_wait_s(error) or 0.0
    if is_transient(error) and wait_s > policy.total_s:
        return ConnectionLostError(
            f"{place}: {describe(error)} and asks to wait {wait_s:.0f} s, longer than the {policy.total_s:.0f} s of "
            f"{RETRY_VARIABLE}: repeat the command after this time; files that are complete are kept."
        )
    if is_transient(error):
        return ConnectionLostError(
            f"{place}: {describe(error)}, and retries for {policy.total_s:.0f} s did not help: repeat the command "
            f"later; files that are complete are kept."
        )
    if status == HTTPStatus.UNAUTHORIZED:
        return _invalid_token(place) if _has_token() else _no_repository(place)
    if status == HTTPStatus.FORBIDDEN:
        return SetupError(f"{place}: the token may not read this {place.noun}: give it the permission, {_OTHER_TOKEN}.")
    reason = f"HTTP status {status}" if status else type(error).__name__
    return SetupError(f"{place}: the request to {endpoint()} failed ({reason}): check HF_ENDPOINT.")


_LOG_IN = "log in (`hf auth login`) or set HF_TOKEN"
_OTHER_TOKEN = "or use the token of an account with access"  # noqa: S105 (a sentence)


def _has_token() -> bool:
    import huggingface_hub

    return huggingface_hub.get_token() is not None


def _offline(place: _Place) -> HpcqError:
    file = f" and '{place.file}' is not in the cache" if place.file else ""
    return HubOfflineError(f"{place}: HF_HUB_OFFLINE is set{file}: unset it, or run `hpcq stage` where it is not set.")


def _gated(place: _Place) -> HpcqError:
    if _has_token():
        return SetupError(
            f"{place}: gated, and the account of the token has no access: request access at {place.url} with this "
            f"account, {_OTHER_TOKEN}."
        )
    return SetupError(
        f"{place}: gated, and there is no token: request access at {place.url}, then {_LOG_IN} of the same account."
    )


def _disabled(place: _Place) -> HpcqError:
    return UserInputError(f"{place}: the hub has disabled this {place.noun} (see {place.url}): use another one.")


def _invalid_token(place: _Place) -> HpcqError:
    return SetupError(f"{place}: the hub does not accept the token (HF_TOKEN, or `hf auth login`): renew it.")


def _no_repository(place: _Place) -> HpcqError:
    if _has_token():
        return UserInputError(
            f"{place}: {endpoint()} has no such {place.noun}, or it is private and the account of the token has no "
            f"access: correct the id, {_OTHER_TOKEN}."
        )
    return UserInputError(
        f"{place}: {endpoint()} has no such {place.noun}, or it is private and there is no token: correct the id, or "
        f"{_LOG_IN}."
    )


def _no_revision(place: _Place) -> HpcqError:
    if is_commit(place.revision):
        return MissingCommitError(
            f"{place}: the {place.noun} does not have this commit (any more): choose another one at {place.url}."
        )
    digits = " A commit needs all 40 digits." if _SHORT_COMMIT.fullmatch(place.revision) else ""
    return UserInputError(
        f"{place}: the {place.noun} has no branch, tag or commit '{place.revision}': choose one of those at "
        f"{place.url}.{digits}"
    )


def _no_file(place: _Place) -> HpcqError:
    return MissingFileError(
        f"{place}: the {place.noun} has no file '{place.file}': choose another revision (see {place.url})."
    )


def _no_id(place: _Place) -> HpcqError:
    name, at, revision = place.repo_id.partition("@")
    hint = f" '{name}', with the key revision = '{revision}'" if at else " ORGANIZATION/NAME"
    return UserInputError(f"'{place.repo_id}' is not an id of a {place.noun} on the hub: write{hint}.")


def _wrong_answer(place: _Place) -> HpcqError:
    return SetupError(f"{place}: {_no_hub()}")
