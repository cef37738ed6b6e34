"""Paths of a run's files and of the cache. The names in a run's folder are a contract that users script against."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import field
from pathlib import Path

from hpcq.core.addressing import DIGEST_CHARACTERS
from hpcq.core.files import list_folder, storage_errors
from hpcq.core.frozen import dataclass
from hpcq.core.unit_ids import UnitId
from hpcq.core.work_records import UnitKind, Variant

COMPLETION_FILE = "complete.json"
"""File in a unit's folder of segments: the marker that every request is answered and committed."""


@dataclass(frozen=True, kw_only=True)
class RunLayout:
    """Paths of the run `name`, all absolute, and who may change the folders above (`hpcq.core.permissions`).

    Attributes:
        trusted_users: Names of users.
        trusted_groups: Names of groups.
    """

    name: str
    runs: Path
    checkpoints: Path
    logs: Path
    trusted_users: tuple[str, ...] = field(default=(), compare=False)
    trusted_groups: tuple[str, ...] = field(default=(), compare=False)

    @property
    def folder(self) -> Path:
        """Folder of the run, except logs and checkpoints."""
        return self.runs / self.name

    @property
    def manifest_lock(self) -> Path:
        """The resolved manifest; it can be submitted itself."""
        return self.folder / "manifest.lock.toml"

    @property
    def plan(self) -> Path:
        """Units and arrays: the document of `plan --json`."""
        return self.folder / "plan.json"

    @property
    def unfinished_change(self) -> Path:
        """Empty file that exists while the lock file and the plan are replaced: after a kill, they may not match."""
        return self.folder / ".change"

    @property
    def history(self) -> Path:
        """Earlier lock files and plans of the run, one numbered folder each."""
        return self.folder / "history"

    @property
    def merge_record(self) -> Path:
        """The unit that merges the run's responses, with everything that it needs."""
        return self.folder / "merge.json"

    @property
    def run_lock(self) -> Path:
        """Lock file, locked while a command submits the run; holds the identity of its process."""
        return self.folder / ".lock"

    @property
    def results(self) -> Path:
        """Merged responses, scores and provenance."""
        return self.folder / "results.h5"

    @property
    def segments(self) -> Path:
        """One folder per unit, with immutable HDF5 files."""
        return self.folder / "segments"

    @property
    def attempts(self) -> Path:
        """One JSON file per attempt."""
        return self.folder / "attempts"

    @property
    def rendezvous(self) -> Path:
        """Rendezvous of the nodes of multi-node units: one folder per start of a job, deleted when it ends."""
        return self.folder / "rendezvous"

    @property
    def submissions(self) -> Path:
        """One JSON file per array that was submitted to the scheduler."""
        return self.folder / "submissions"

    @property
    def job_logs(self) -> Path:
        """Output of the run's units: `<unit>.<attempt>.log`."""
        return self.logs / self.name

    @property
    def launcher_logs(self) -> Path:
        """One folder per submission: batch script, records of its units, and output from before a unit started."""
        return self.job_logs / "submitit"

    @property
    def packages(self) -> Path:
        """Copies of the package hpcq that this user's jobs run, shared by all runs in the folder."""
        return self.runs / f".packages-{os.geteuid()}"

    @property
    def package_links(self) -> Path:
        """Links to the copies that the run's jobs use."""
        return self.folder / "packages"

    def unit_log(self, unit_id: str, attempt: int) -> Path:
        """Return the log of an attempt. Other nodes of the unit write to `<unit>.<attempt>-<node>.log`."""
        return self.job_logs / f"{unit_id}.{attempt}.log"

    def unit_logs(self) -> dict[Path, str]:
        """Return the existing logs of all attempts, each with the id of its unit."""
        return {path: path.stem.rpartition(".")[0] for path in self.job_logs.glob("*.log")}

    def unit_segments(self, unit_id: str) -> Path:
        """Return the folder to which a unit commits its segments."""
        return self.segments / unit_id

    def checkpoint(self, variant: Variant) -> Path:
        """Return the folder of a quantized variant, shared by all runs; a base checkpoint is in its model's folder."""
        return checkpoint_path(self.checkpoints, variant)


def checkpoint_path(checkpoints: Path, variant: Variant) -> Path:
    """Return `<checkpoints>/<model>/<scheme>-<digest>`."""
    return checkpoints / variant.model.slug / f"{variant.scheme.slug}-{variant.address[:DIGEST_CHARACTERS]}"


def chat_template_record(segments: Path, variant: Variant) -> Path:
    """Return the file, next to the folder `segments` of a run, with the chat template of a variant's checkpoint."""
    return segments.parent / "chat_templates" / f"{variant.id}.json"


def segment_folders(segments: Path, variant: Variant) -> list[Path]:
    """Return the existing folders of all evaluations of the variant in `segments`.

    Units of earlier plans, with another number of shards, are included.
    """
    return variant_folders(segments, variant.id)


def variant_folders(segments: Path, variant_id: str) -> list[Path]:
    """Return the same folders for the id of a variant."""
    # Each attempt starts with this, in a run of thousands of units: most names are only compared.
    with contextlib.suppress(FileNotFoundError), storage_errors(segments), os.scandir(segments) as entries:
        prefix = f"{UnitKind.EVALUATE}.{variant_id}"
        folders = sorted(Path(entry.path) for entry in entries if entry.name.startswith(prefix))
        return _by_variant(folders).get(variant_id, [])
    return []


def all_segment_folders(segments: Path) -> dict[str, list[Path]]:
    """Return the existing folders of all evaluations in `segments` by the id of their variant."""
    return _by_variant(list_folder(segments))


def _by_variant(folders: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for folder in folders:
        unit = UnitId.parse(folder.name)
        if unit and unit.kind is UnitKind.EVALUATE:
            found.setdefault(unit.subject, []).append(folder)
    return found


def cache_folder() -> Path:
    """Return the absolute root of the cache that outlives a checkout; it need not exist yet.

    It holds environments, staged models, benchmark items and calibration text, all of which can be made again.
    `HPCQ_CACHE`, else `$XDG_CACHE_HOME/hpcq`, else `~/.cache/hpcq`.
    """
    named = os.environ.get("HPCQ_CACHE")
    if named:
        return Path(named).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser().resolve() / "hpcq"
