"""Paths of what is staged from the hub: the hub client's cache, and the files that hpcq prepares from it.

All paths follow from a repository's id and commit, so that they are known before anything is staged. A path that
exists is complete only if its completion marker says so (`hpcq.stage`).
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

from hpcq.core.addressing import address_of, slug
from hpcq.core.frozen import dataclass

DEFAULT_REVISION = "main"
_KEY_CHARACTERS = 12


class RepoKind(StrEnum):
    """Kind of a repository on the hub."""

    MODEL = "model"
    DATASET = "dataset"


@dataclass(frozen=True, kw_only=True)
class HubCache:
    """Folders on the shared file system that hold what is staged.

    Attributes:
        hub: Cache of huggingface_hub (HF_HUB_CACHE), in its own layout, shared with the user's other programs.
        prepared: Folder of hpcq's files: completion markers, prepared data sets, calibration texts.
    """

    hub: Path
    prepared: Path

    def repository(self, kind: RepoKind, repo_id: str) -> Path:
        """Return the folder of a repository in the hub client's cache (huggingface_hub 1.33, repo_folder_name)."""
        return self.hub / "--".join((f"{kind.value}s", *repo_id.split("/")))

    def snapshot(self, kind: RepoKind, repo_id: str, commit: str) -> Path:
        """Return the folder with a repository's files at `commit`, some of which may be missing."""
        return self.repository(kind, repo_id) / "snapshots" / commit

    def marker(self, kind: RepoKind, repo_id: str, commit: str) -> Path:
        """Return the completion marker of a snapshot: a JSON file with the names, sizes and digests of its files."""
        return self._own(kind, repo_id) / f"{commit}.json"

    def dataset(self, repo_id: str, commit: str, arguments: dict[str, object]) -> Path:
        """Return the folder of a prepared data set, as `datasets.DatasetDict.save_to_disk` writes it.

        Args:
            repo_id: The data set's repository.
            commit: Its commit.
            arguments: All further arguments of `datasets.load_dataset` that select what is loaded, such as `name`.
        """
        key = address_of("dataset", arguments)[:_KEY_CHARACTERS]
        return self._own(RepoKind.DATASET, repo_id) / commit / f"{slug(str(arguments.get('name') or 'default'))}-{key}"

    def calibration(self, repo_id: str, commit: str, selection: tuple[str, ...]) -> Path:
        """Return the calibration text (JSON lines) made from a data set; `selection` is its config, split, column."""
        key = address_of("calibration", list(selection))[:_KEY_CHARACTERS]
        return self.prepared / "calibration" / "--".join(repo_id.split("/")) / f"{commit}-{key}.jsonl"

    def _own(self, kind: RepoKind, repo_id: str) -> Path:
        return self.prepared / f"{kind.value}s" / "--".join(repo_id.split("/"))


def hub_cache(root: Path | None = None) -> HubCache:
    """Return the folders below `root`; without it, those of the hub client's variables HF_HOME and HF_HUB_CACHE."""
    if root is not None:
        return HubCache(hub=root / "hub", prepared=root / "hpcq")
    home = _home()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser().absolute()
    return HubCache(hub=hub, prepared=home / "hpcq")


def datasets_cache() -> Path:
    """Return the folder in which `datasets` (5.2) prepares data sets for all of the user's programs."""
    return Path(os.environ.get("HF_DATASETS_CACHE") or _home() / "datasets").expanduser().absolute()


def _home() -> Path:
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("HF_HOME") or user_cache / "huggingface").expanduser().absolute()
