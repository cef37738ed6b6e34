"""A data set's repository at one commit, on the hub or in a mirror: names of its files, and the files themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hpcq.core.errors import SetupError
from hpcq.core.files import write_text
from hpcq.core.frozen import dataclass
from hpcq.core.hub_cache import HubCache, RepoKind
from hpcq.core.mirror import is_mirror_revision, mirror_revision, mirrored_repository, repository_files
from hpcq.stage import hub_client

_LISTING = "files.json"
_PARALLEL_DOWNLOADS = 8


@dataclass(frozen=True, kw_only=True)
class HubRepository:
    """A repository on the hub. Files that are in the cache are not requested again.

    Attributes:
        notify: Called with one line per retry.
    """

    repo_id: str
    commit: str
    cache: HubCache
    notify: Callable[[str], None] = hub_client.ignore
    is_mirrored: bool = False

    def names(self) -> tuple[str, ...]:
        """Return the names of its files. They are requested only once, because a commit does not change.

        Raises:
            UserInputError: The hub has no such data set or commit.
            SetupError: The hub does not respond, or denies access.
        """
        listing = self.cache.dataset(self.repo_id, self.commit, {}).with_name(_LISTING)
        try:
            return tuple(json.loads(listing.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):  # not there, or damaged
            found = hub_client.list_files(RepoKind.DATASET, self.repo_id, self.commit, notify=self.notify)
            names = tuple(sorted(file.path for file in found))
            write_text(listing, json.dumps(names))
            return names

    def fetch(self, names: Sequence[str]) -> Path:
        """Download the files that the cache does not have, and return the folder of the snapshot."""

        def download(name: str) -> None:
            hub_client.download_file(RepoKind.DATASET, self.repo_id, self.commit, name, self.cache, notify=self.notify)

        with hub_client.quiet_client(), ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
            try:
                list(pool.map(download, names))
            finally:
                pool.shutdown(cancel_futures=True)
        return self.cache.snapshot(RepoKind.DATASET, self.repo_id, self.commit)


@dataclass(frozen=True, kw_only=True)
class MirroredRepository:
    """A repository in a mirror."""

    repo_id: str
    folder: Path
    is_mirrored: bool = True

    def names(self) -> tuple[str, ...]:
        """Return the names of its files."""
        return repository_files(self.folder)

    def fetch(self, names: Sequence[str]) -> Path:  # noqa: ARG002  all files are there
        """Return its folder."""
        return self.folder


Repository = HubRepository | MirroredRepository
"""A repository at one commit; `is_mirrored`: it may have plain files instead of a snapshot."""


def open_repository(
    repo_id: str,
    commit: str,
    cache: HubCache,
    mirror: Path | None,
    notify: Callable[[str], None] = hub_client.ignore,
) -> Repository:
    """Return the repository at `commit` on the hub, or the mirrored one that `commit` identifies.

    Args:
        repo_id: The data set's repository.
        commit: Its commit, or what identifies the mirrored files.
        cache: Folders of what is staged.
        mirror: Folder that replaces the hub.
        notify: Called with one line per retry of a request to the hub.

    Raises:
        SetupError: The mirror does not have the repository, or its files have changed.
    """
    if not is_mirror_revision(commit):
        return HubRepository(repo_id=repo_id, commit=commit, cache=cache, notify=notify)
    folder = mirrored_repository(mirror, RepoKind.DATASET, repo_id)
    if folder is None:
        raise SetupError(
            f"{repo_id}: the run was planned with a mirrored data set, but the mirror ({mirror or 'none is set'}) does "
            "not have it. Correct data.mirror, or submit the manifest again to plan with the hub."
        )
    if commit != (found := mirror_revision(folder)):
        raise SetupError(
            f"{folder}: the mirrored files have the digest {found[:12]}…, but the run was planned with {commit[:12]}…. "
            "Restore them, or submit the manifest again to plan with the current ones."
        )
    return MirroredRepository(repo_id=repo_id, folder=folder)
