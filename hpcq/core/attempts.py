"""The record of an attempt: one execution of a unit, one JSON file, replaced by rename as the attempt goes on.

The job writes it, workers add what they learn (`total`, `restored`), and the monitor reads it. Times are UTC, ISO 8601.
"""

from __future__ import annotations

import datetime
import json
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hpcq.core.errors import HpcqError
from hpcq.core.files import listed, make_folder, storage_faults, write_text
from hpcq.core.node_rank import Place


def now() -> str:
    """The present as ISO 8601 in UTC, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """What is known of one attempt.

    launcher: local or slurm. process: `hpcq.core.processes.identity` of it. outcome: running, done, failed, interrupted.
    reason, error: one sentence where it failed, and the exception's class. total, restored: the unit's requests in all,
    and those which the store already answered when the attempt began (None: not counted yet). `facts` is what the
    worker measured (seconds by phase, peak memory in bytes, versions, device), for the merge and the planner; `planned`
    among them: the class, the back end and the seconds that were reckoned when it was handed over.

    restart: how often Slurm had started the job before. gpus: that the attempt held, on all of its nodes. rung: of the
    ladder of smaller settings (`hpcq.launch.recovery.retry_policy`). Once it has ended: failure (`hpcq.core.failures.Failure`),
    faulty_node (where that was, if not on `node`), decision (`hpcq.launch.recovery.retry_policy.Action`: what becomes of the unit),
    added: responses, or blocks of a checkpoint, that this attempt committed.
    """

    unit: str
    attempt: int
    job_id: str
    node: str
    pid: int
    start: str
    launcher: str = "local"
    process: str = ""
    end: str | None = None
    outcome: str = "running"
    reason: str | None = None
    error: str | None = None
    total: int | None = None
    restored: int | None = None
    phase: str | None = None
    restart: int = 0
    gpus: int = 0
    rung: int = 0
    failure: str | None = None
    faulty_node: str = ""
    decision: str | None = None
    added: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    schema: int = 1


class Attempt:
    """A live attempt: every `update`, from whichever thread, is on disk when it returns.

    batch_share: `EvaluateWork.batch_share` of this attempt. gather: called before an engine is started; has the other
    nodes of the unit do the same, and tells where this one stands (None: there is no other).
    """

    batch_share: float = 1.0

    def __init__(self, folder: Path, record: AttemptRecord) -> None:
        self.path = _path(folder, record.unit, record.attempt)
        self.record = record
        self.gather: Callable[[], Place | None] = lambda: None
        self._lock = threading.RLock()
        self._on_notice: list[Callable[[], object]] = []
        self._commit()

    def update(self, **changes: Any) -> None:
        """Replace fields of the record; `facts` are added to those already there."""
        with self._lock:
            facts = {**self.record.facts, **changes.pop("facts", {})}
            self.record = replace(self.record, facts=facts, **changes)
            self._commit()

    def on_notice(self, act: Callable[[], object]) -> None:
        """Have `act` called, from another thread, when the attempt's end is announced. A courtesy: it need not be."""
        self._on_notice.append(act)

    def notify(self) -> None:
        """Call what was to be called. What fails in it is printed: the attempt goes on, and its own thread meets it."""
        for act in self._on_notice:
            try:
                act()
            except (HpcqError, OSError):
                traceback.print_exc()

    def _commit(self) -> None:
        write_text(self.path, json.dumps(asdict(self.record), indent=1, sort_keys=True) + "\n")


def new_attempt(folder: Path, record: AttemptRecord) -> Attempt:
    """Begin `record` under the next free number, whatever number it has; no two processes get the same.

    The number is claimed by making a folder, which one process alone can do. A number whose claimant was killed before
    it wrote the record stays unused.

    Raises:
        StorageError: the record cannot be written.
    """
    with storage_faults(folder):
        make_folder(folder)
        number = next_number(folder, record.unit)
        while True:
            claim = folder / f".{record.unit}.{number}.claim"
            try:
                claim.mkdir()
            except FileExistsError:
                number += 1
                continue
            try:
                if not _path(folder, record.unit, number).exists():
                    return Attempt(folder, replace(record, attempt=number))
            finally:
                claim.rmdir()
            number += 1


def read_attempts(folder: Path) -> dict[str, list[AttemptRecord]]:
    """Every attempt under `folder` that can be read, by unit, in order. Fields of later versions are ignored.

    Raises:
        StorageError: the file system refused to tell.
    """
    return _read_all(_records(folder))


def attempts_of(folder: Path, unit: str) -> list[AttemptRecord]:
    """Those of one unit, in order, without reading the others'.

    Raises:
        StorageError: the file system refused to tell.
    """
    return _read_all([path for path in _records(folder) if path.name.startswith(f"{unit}.")]).get(unit, [])


def _read_all(paths: Iterable[Path]) -> dict[str, list[AttemptRecord]]:
    found: dict[str, list[AttemptRecord]] = {}
    for path in paths:
        with storage_faults(path):
            record = _read(path)
        if record and (record.unit, record.attempt) == _unit_and_number(path):
            found.setdefault(record.unit, []).append(record)
    for records in found.values():
        records.sort(key=lambda record: record.attempt)
    return found


def _records(folder: Path) -> list[Path]:
    return [path for path in listed(folder) if path.suffix == ".json" and not path.name.startswith(".")]


def _read(path: Path) -> AttemptRecord | None:
    """None for a file that was cut or is none of ours."""
    known = AttemptRecord.__dataclass_fields__
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return AttemptRecord(**{key: value for key, value in content.items() if key in known})
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None


def _path(folder: Path, unit: str, number: int) -> Path:
    return folder / f"{unit}.{number}.json"


def _unit_and_number(path: Path) -> tuple[str, int] | None:
    """What the name of an attempt's file tells, even where its content does not."""
    unit, _, number = path.stem.rpartition(".")
    return (unit, int(number)) if number.isdecimal() else None


def last_words(log: str | None) -> str:
    """The last line that a job printed before its unit began, and where; for a reason."""
    try:
        lines = Path(log).read_text(encoding="utf-8", errors="replace").split("\n") if log else []
    except OSError:
        return f"it left no log at {log}"
    spoken = [line.strip() for line in lines if line.strip()]
    return f"{spoken[-1]} ({log})" if spoken else f"it said nothing in {log}"


def next_number(folder: Path, unit: str) -> int:
    """The number of the attempt that starts now: 1 for the first. Attempts that cannot be read count, too."""
    names = filter(None, map(_unit_and_number, _records(folder)))
    return max((number for of, number in names if of == unit), default=0) + 1
