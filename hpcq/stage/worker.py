"""Stage worker: stages what a run reads from the hub, on a node with a network."""

from __future__ import annotations

import time
from pathlib import Path

from hpcq.core.attempts import Attempt
from hpcq.core.completion_marker import write_completion_marker
from hpcq.core.umask import user_umask
from hpcq.core.work_records import StageWork
from hpcq.quantize.checkpoint_lock import LockOwner
from hpcq.stage.inputs import hub_inputs, write_refs
from hpcq.stage.progress import Item, StagedItem, StageProgress

RECORD_INTERVAL_S = 10.0


def stage(work: StageWork, attempt: Attempt) -> None:
    """Stage everything in `work`, and commit the unit's completion marker.

    Raises:
        UserInputError: The hub has no such repository, commit or file.
        SetupError: The hub does not respond, denies access, or space is missing.
        StorageError: The cache cannot be written.
    """
    inputs = hub_inputs(work, LockOwner.from_attempt(attempt.record))
    reporter = _AttemptReporter(attempt)
    with user_umask():
        for each in inputs:
            each.stage(reporter)
        write_refs(work)
    write_completion_marker(
        Path(work.segments_path), address=work.address, requests=len(inputs), attempt=attempt.record.attempt
    )
    attempt.update(phase=None)


class _AttemptReporter:
    """Writes results to the log; records the phase and the bytes, by which a retry after progress is unlimited."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._phase = ""
        self._recorded_s = 0.0
        self._begin_bytes = 0

    def progress(self, progress: StageProgress) -> None:
        """Record a new phase at once, and the bytes every few seconds."""
        phase, now_s = f"{progress.phase} {progress.item.name}", time.monotonic()
        if phase != self._phase:
            self._phase, self._begin_bytes = phase, progress.done
        elif now_s - self._recorded_s < RECORD_INTERVAL_S:
            return
        self._recorded_s = now_s
        total = f" {100 * progress.done // progress.total} %" if progress.total else ""
        self._attempt.update(phase=f"{phase}{total}", committed=progress.done - self._begin_bytes)

    def note(self, item: Item, text: str) -> None:
        """Write a line."""
        print(f"{item.name}: {text}", flush=True)  # noqa: T201 (the unit's log)

    def finished(self, staged: StagedItem) -> None:
        """Write a line."""
        print(f"{staged.item.name}: {staged.origin}, {staged.size / 1e9:.3f} GB", flush=True)  # noqa: T201
