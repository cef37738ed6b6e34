"""Look up the commits of a manifest's hub repositories, and fetch the configurations of its models.

Each repository is looked up once per command: one request for a branch or tag, none for a commit. A run keeps the
commits of its lock file, even if a branch moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hpcq.catalog.checkpoint_formats import OTHER_FILES
from hpcq.catalog.checkpoint_problems import ADAPTER_FILE, IS_ADAPTER
from hpcq.catalog.generation_settings import GENERATION_CONFIG_FILE
from hpcq.core.errors import HpcqError, SetupError, UserInputError
from hpcq.core.hub_cache import HubCache, RepoKind
from hpcq.manifest.context import manifest_cache
from hpcq.manifest.pins import Pin, Pins, Repository, repositories
from hpcq.manifest.schema import LockedRepository, Manifest
from hpcq.stage import hub_client

_CONFIG = "config.json"
_OPTIONAL = ("model.safetensors.index.json", GENERATION_CONFIG_FILE, *OTHER_FILES)
"""Index of a checkpoint with several files, generation settings, and files in which tools declare the quantization."""


def find_pins(manifest: Manifest, locked: Sequence[LockedRepository] = ()) -> Pins:
    """Return the pins of all hub repositories of a manifest. A failed look-up is the pin's `problem`.

    Args:
        manifest: The manifest.
        locked: Repositories in the lock file of the run; their commits are kept.
    """
    cache = manifest_cache(manifest)
    recorded = (*locked, *(manifest.locked.repositories if manifest.locked else ()))
    return Pins(by_repository={each: _pin(each, recorded, cache) for each in repositories(manifest)})


def _pin(repository: Repository, recorded: Sequence[LockedRepository], cache: HubCache) -> Pin:
    known = next((row for row in recorded if _is_same(row, repository)), None)
    pin = _resolve(repository, known, cache)
    if pin.commit is None or repository.kind is not RepoKind.MODEL:
        return pin
    try:
        hub_client.fetch_files(repository.kind, repository.id, pin.commit, [_CONFIG], cache, optional=_OPTIONAL)
    except (SetupError, UserInputError) as error:
        problem = _not_staged(error, known, cache) if known else _adapter_problem(error, repository, pin, cache)
        return replace(pin, problem=problem, is_input_error=isinstance(error, UserInputError))
    return pin


def _adapter_problem(error: HpcqError, repository: Repository, pin: Pin, cache: HubCache) -> str:
    """Return the problem; of a repository without config.json, whether it is an adapter."""
    if pin.commit and isinstance(error, hub_client.MissingFileError):
        place = (repository.kind, repository.id, pin.commit)
        folder = hub_client.fetch_files(*place, (), cache, optional=[ADAPTER_FILE])
        if (folder / ADAPTER_FILE).is_file():
            return f"{str(error).partition(': ')[0]}: the repository {IS_ADAPTER}"
    return str(error)


def _not_staged(error: HpcqError, known: LockedRepository, cache: HubCache) -> str:
    """Return the problem of a repository that a lock file names, as one sentence that says what has to be staged."""
    name, _, reason = str(error).partition(": ")
    if isinstance(error, hub_client.MissingCommitError):
        return (
            f"{name}: the lock file names this commit, which is neither on the hub nor in {cache.hub}: copy it to this "
            f"cache, or submit the manifest as another run (run.name), which uses the current commit of "
            f"'{known.requested}'."
        )
    return f"{name}: it is not in {cache.hub} and has to be staged, but {reason}"


def _is_same(row: LockedRepository, repository: Repository) -> bool:
    is_same_repository = (row.kind, row.id) == (repository.kind, repository.id)
    return is_same_repository and repository.requested in (row.requested, row.commit)


def _resolve(repository: Repository, known: LockedRepository | None, cache: HubCache) -> Pin:
    """Return the commit: the one in the lock file, else the one that the hub or its cache has."""
    if repository.is_commit:
        requested, moved_to = (known.requested, known.moved_to) if known else (None, None)
        return Pin(commit=repository.requested, requested_as=requested, moved_to=moved_to)
    try:
        found = hub_client.resolve(repository.kind, repository.id, repository.requested, cache)
    except (SetupError, UserInputError) as error:
        # A run with a lock file needs the hub only for the note that a branch has moved.
        if known:
            return Pin(commit=known.commit, moved_to=known.moved_to)
        return Pin(commit=None, problem=str(error), is_input_error=isinstance(error, UserInputError))
    if known:
        return Pin(commit=known.commit, moved_to=found.commit if found.commit != known.commit else None)
    return Pin(commit=found.commit, note=found.note)
