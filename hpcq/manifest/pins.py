"""Pins: the commits of the revisions of a manifest's hub repositories, resolved once per run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field

from hpcq.catalog.packages import staged_calibration_path
from hpcq.core.frozen import dataclass
from hpcq.core.hub_cache import DEFAULT_REVISION, RepoKind
from hpcq.manifest.checkpoints import is_folder_text
from hpcq.manifest.lookups import model_id, text_file
from hpcq.manifest.schema import LockedRepository, Manifest, ModelEntry, TextSection
from hpcq.manifest.task_names import task_entries, task_info

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TEXT_SUFFIXES = (".jsonl", ".txt")
_SHOWN = 12
"""Digits of a commit in messages."""


@dataclass(frozen=True, kw_only=True, order=True)
class Repository:
    """A repository on the hub, at the revision that a manifest requests.

    Attributes:
        kind: Model or data set.
        id: Id on the hub.
        requested: Branch, tag or commit.
    """

    kind: RepoKind
    id: str
    requested: str = DEFAULT_REVISION

    @property
    def is_commit(self) -> bool:
        """Whether the requested revision is a commit, which cannot move."""
        return _COMMIT.fullmatch(self.requested) is not None


@dataclass(frozen=True, kw_only=True)
class Pin:
    """What is known about a repository.

    Attributes:
        commit: The commit; None: it could not be resolved.
        requested_as: The branch or tag that a lock file's commit was resolved from; None: `Repository.requested`.
        moved_to: The commit that the requested revision points to now, if the run uses an earlier one.
        problem: Why the commit or the files are not available, as a sentence; None: they are.
        is_input_error: The manifest is the cause of the problem, not the environment.
        note: Remark about how the revision was resolved.
    """

    commit: str | None
    requested_as: str | None = None
    moved_to: str | None = None
    problem: str | None = None
    is_input_error: bool = False
    note: str | None = None

    @property
    def is_setup_problem(self) -> bool:
        """Whether there is a problem whose cause is the environment."""
        return self.problem is not None and not self.is_input_error


@dataclass(frozen=True, kw_only=True)
class Pins:
    """Pins by repository; a repository that is not in it has not been looked up."""

    by_repository: Mapping[Repository, Pin] = field(default_factory=dict)

    def commit(self, repository: Repository) -> str | None:
        """Return the commit of a repository; None: unknown. A commit resolves to itself."""
        pin = self.by_repository.get(repository)
        if pin is None:
            return repository.requested if repository.is_commit else None
        return pin.commit

    def notes(self) -> Iterator[str]:
        """Yield sentences about the repositories for readers of the scores."""
        yield from self.problems(in_input=False)
        for repository, pin in sorted(self.by_repository.items()):
            requested, commit = pin.requested_as or repository.requested, (pin.commit or "")[:_SHOWN]
            if commit and pin.commit != requested:
                note = f" ({pin.note})" if pin.note else ""
                yield f"{repository.id}: {requested} is commit {commit}{note}."
            if pin.moved_to:
                yield (
                    f"{repository.id}: {requested} has moved to commit {pin.moved_to[:_SHOWN]} since this run was"
                    f" submitted. The run keeps {commit}; another run evaluates the new commit: -O run.name=NAME."
                )

    def refs(self) -> Iterator[tuple[RepoKind, str, str, str]]:
        """Yield kind, id, commit and name of each branch or tag that has not moved since."""
        for repository, pin in self.by_repository.items():
            if pin.commit and not repository.is_commit and not pin.moved_to:
                yield repository.kind, repository.id, pin.commit, repository.requested

    def locked(self) -> tuple[LockedRepository, ...]:
        """Return the entries of a lock file, for all repositories whose commit is known."""
        return tuple(
            LockedRepository(
                kind="model" if repository.kind is RepoKind.MODEL else "dataset",
                id=repository.id,
                requested=pin.requested_as or repository.requested,
                commit=pin.commit,
                moved_to=pin.moved_to,
            )
            for repository, pin in sorted(self.by_repository.items())
            if pin.commit
        )

    def problems(self, *, in_input: bool) -> tuple[str, ...]:
        """Return why repositories are not available because of the manifest, or of the environment.

        One sentence, "<repository>@<revision>: <reason>", names all repositories with the same reason.
        """
        found: dict[str, list[str]] = {}
        for pin in self.by_repository.values():
            if pin.problem and pin.is_input_error == in_input:
                name, _, reason = pin.problem.partition(": ")
                found.setdefault(reason, []).append(name)
        return tuple(f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in found.items())


def repositories(manifest: Manifest) -> tuple[Repository, ...]:
    """Return the hub repositories that a manifest names, each once; none in a rehearsal, or with a mirror."""
    if manifest.is_synthetic or manifest.data.mirror is not None:
        return ()
    return tuple(dict.fromkeys((*_models(manifest), *_datasets(manifest), *_texts(manifest))))


def dataset_ids(tasks: Iterable[str], manifest: Manifest) -> tuple[str, ...]:
    """Return the ids of the data sets on the hub that tasks of a manifest read, each once."""
    facts = (task_info(name, manifest) for name in tasks)
    return tuple(dict.fromkeys(repo_id for each in facts if each for repo_id in each.datasets))


def dataset_repository(repo_id: str, manifest: Manifest) -> Repository:
    """Return a data set's repository at the revision in `data.revisions`, by default main."""
    requested = manifest.data.revisions.get(repo_id, DEFAULT_REVISION)
    return Repository(kind=RepoKind.DATASET, id=repo_id, requested=requested)


def calibration_repository(manifest: Manifest) -> Repository | None:
    """Return the repository of the calibration text; None: it does not come from the hub."""
    return text_repository(manifest.calibration, manifest)


def text_repository(section: TextSection, manifest: Manifest) -> Repository | None:
    """Return the repository of a table's text; None: it does not come from the hub."""
    is_hub_id = _HUB_ID.fullmatch(section.dataset) and not section.dataset.endswith(_TEXT_SUFFIXES)
    if not is_hub_id or staged_calibration_path(section.dataset) or text_file(section, manifest):
        return None
    return Repository(kind=RepoKind.DATASET, id=section.dataset, requested=section.revision or DEFAULT_REVISION)


def model_repository(entry: ModelEntry) -> Repository:
    """Return the repository of a model that comes from the hub."""
    return Repository(kind=RepoKind.MODEL, id=model_id(entry), requested=entry.revision or DEFAULT_REVISION)


def checkpoint_repositories(entry: ModelEntry) -> dict[str, Repository]:
    """Return the repositories of the checkpoints on the hub that others quantized, by their text in the manifest."""
    found = {}
    for text in entry.checkpoints:
        repo_id, _, revision = text.partition("@")
        if not is_folder_text(text) and _HUB_ID.fullmatch(repo_id):
            found[text] = Repository(kind=RepoKind.MODEL, id=repo_id, requested=revision or DEFAULT_REVISION)
    return found


def _models(manifest: Manifest) -> Iterable[Repository]:
    for entry in manifest.models:
        if entry.is_on_hub:
            yield model_repository(entry)
        yield from checkpoint_repositories(entry).values()


def _datasets(manifest: Manifest) -> Iterable[Repository]:
    if manifest.tasks.data != "hub":
        return ()
    names = (name for _, name, _ in task_entries(manifest))
    return (dataset_repository(repo_id, manifest) for repo_id in dataset_ids(names, manifest))


def _texts(manifest: Manifest) -> Iterable[Repository]:
    sections: tuple[TextSection | None, ...] = (manifest.calibration, manifest.fidelity)
    found = (text_repository(section, manifest) for section in sections if section)
    return (repository for repository in found if repository)
