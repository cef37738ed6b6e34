"""Where everything of a run lies on disk: the one class that owns the names (a contract that others script against)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpcq.core.work import Variant, slug

COMPLETE = "complete.json"
"""In a unit's folder of segments: its worker's word that every request is answered and committed."""


@dataclass(frozen=True, kw_only=True)
class RunLayout:
    """The folders of the run `name`, all absolute."""

    name: str
    runs: Path
    checkpoints: Path
    logs: Path

    @property
    def folder(self) -> Path:
        """Everything that the run knows."""
        return self.runs / self.name

    @property
    def lock(self) -> Path:
        """The manifest as resolved; itself submittable."""
        return self.folder / "manifest.lock.toml"

    @property
    def plan(self) -> Path:
        """Units and arrays, the document of `plan --json`."""
        return self.folder / "plan.json"

    @property
    def held(self) -> Path:
        """Locked while a command hands the run over; names its host and process."""
        return self.folder / ".lock"

    @property
    def results(self) -> Path:
        """Merged responses, scores and provenance."""
        return self.folder / "results.h5"

    @property
    def segments(self) -> Path:
        """One folder a unit, immutable HDF5 files in it."""
        return self.folder / "segments"

    @property
    def attempts(self) -> Path:
        """One JSON file an attempt."""
        return self.folder / "attempts"

    @property
    def meetings(self) -> Path:
        """Where the nodes of a unit that spans several find each other: a folder for as long as each runs."""
        return self.folder / "meetings"

    @property
    def submissions(self) -> Path:
        """One JSON file for every array handed to the scheduler."""
        return self.folder / "submissions"

    @property
    def job_logs(self) -> Path:
        """What the run's units print: `<unit>.<attempt>.log`."""
        return self.logs / self.name

    @property
    def launcher_logs(self) -> Path:
        """submitit's own folder: batch scripts, pickles, and what was printed before a unit began."""
        return self.job_logs / "submitit"

    def unit_segments(self, unit_id: str) -> Path:
        """Where one unit commits its segments."""
        return self.segments / unit_id

    def checkpoint(self, variant: Variant) -> Path:
        """Where a quantized variant lies, shared by all runs; a base checkpoint lies where its model does."""
        return checkpoint_path(self.checkpoints, variant)


def checkpoint_path(checkpoints: Path, variant: Variant) -> Path:
    """`<checkpoints>/<model>/<scheme>-<digest>`."""
    return checkpoints / variant.model.slug / f"{slug(variant.scheme.name)}-{variant.address[:12]}"
