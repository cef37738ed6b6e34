"""Use what `datasets` has prepared for another program, if the hub cannot be reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets

from hpcq.core.files import committed_folder

_LOADING_ONLY = ("split", "verification_mode")


def adopt_dataset(repo_id: str, commit: str, arguments: dict[str, Any], folder: Path, cache: Path) -> bool:
    """Commit to `folder` what `datasets.load_dataset` returns from its cache, if it was prepared from this commit.

    Without the hub, `datasets` (5.2) ignores the revision. The name of the folder that it has prepared is the commit.

    Args:
        repo_id: The data set's repository.
        commit: Its commit.
        arguments: Further arguments of `datasets.load_dataset`.
        folder: Where to save it.
        cache: The cache of `datasets`.

    Returns:
        Whether the cache has it.
    """
    options = {key: value for key, value in arguments.items() if key not in _LOADING_ONLY}
    try:
        builder = datasets.load_dataset_builder(repo_id, cache_dir=str(cache), **options)
        if Path(builder.cache_dir).name != commit:
            return False
        loaded = builder.as_dataset(split=arguments.get("split"))
    except (OSError, ValueError, datasets.exceptions.DatasetsError):
        return False
    with committed_folder(folder) as temporary:
        loaded.save_to_disk(str(temporary))
    return True
