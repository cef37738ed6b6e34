"""Mirror of the hub in a folder: `<mirror>/models/<org>/<name>/` and `<mirror>/datasets/<org>/<name>/`.

A data set is a snapshot of its repository, or plain files named by split (`hpcq.stage.repository_view`). It has no
commit: a digest of its files' names and contents identifies it.
"""

from __future__ import annotations

from pathlib import Path

from hpcq.core.digests import digest_of_files
from hpcq.core.files import storage_errors
from hpcq.core.hub_cache import RepoKind

_REVISION_CHARACTERS = 64

CONFIGURATION_FILE = ".huggingface.yaml"
"""File whose YAML is added to that of README.md (datasets 5.2)."""


def mirrored_repository(mirror: Path | None, kind: RepoKind, repo_id: str) -> Path | None:
    """Return the folder of a repository in `mirror`; None: there is no mirror, or it does not have the repository."""
    folder = mirror / f"{kind.value}s" / repo_id if mirror else None
    return folder if folder and folder.is_dir() else None


def repository_files(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of a repository's files, relative to `folder`, without hidden ones.

    The only hidden file that is read is `.huggingface.yaml`; `.cache`, `.git` and the like belong to download tools.

    Raises:
        StorageError: The folder cannot be listed.
    """
    with storage_errors(folder):
        paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return tuple(path.as_posix() for path in paths if str(path) == CONFIGURATION_FILE or not _is_hidden(path))


def mirror_revision(folder: Path) -> str:
    """Return what identifies a mirrored data set instead of a commit: the SHA-256 of its files.

    Raises:
        StorageError: A file cannot be read.
    """
    with storage_errors(folder):
        return digest_of_files(folder, repository_files(folder))


def is_mirror_revision(revision: str) -> bool:
    """Return whether `revision` identifies a mirrored data set; commits of the hub are shorter."""
    return len(revision) == _REVISION_CHARACTERS


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
