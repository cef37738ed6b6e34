"""Attempt records: one JSON file per execution of a unit, replaced by rename on every update.

The job writes the record, workers update it (`total`, `restored`), the monitor reads it. Times are UTC, ISO 8601.
"""

from __future__ import annotations

import bisect
import datetime
import json
import os
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from hpcq.core.attempt_blocks import BLOCK, SUFFIX, block_path, read_block, record_path, write_blocks
from hpcq.core.errors import HpcqError
from hpcq.core.failures import Failure
from hpcq.core.files import (
    IrregularFileError,
    list_folder,
    make_folder,
    read_regular,
    read_tail,
    storage_errors,
    write_text,
)
from hpcq.core.frozen import dataclass
from hpcq.core.node_context import NodeContext
from hpcq.core.outcomes import Action, Launcher, Outcome, parse_value

_LAST_BYTES = 1 << 16
"""The end of a log in which its last line is looked for."""


def utc_now() -> str:
    """Return the current time as ISO 8601 in UTC, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """State of one attempt, as its file stores it.

    Attributes:
        unit: Id of the unit.
        attempt: Number of the attempt, from 1.
        job_id: Slurm's job id, or the local launcher's.
        node: Host name of the node (of rank 0, if the unit spans several).
        pid: Process id on that node.
        start: Time at which the attempt started.
        launcher: What started the attempt.
        process: `hpcq.core.processes.identity` of the process.
        end: Time at which the attempt ended.
        outcome: How it has ended.
        reason: One sentence on why it failed.
        error: Class of the exception.
        total: Number of requests of the unit (None: not counted yet).
        restored: Requests that the store had answers for when the attempt started (None: not counted yet).
        phase: Current step, such as 'loading'.
        restart: How often Slurm had started the job before.
        gpus: GPUs that the attempt held, over all of its nodes.
        oom_step: Index of the reduced settings that it ran with (`hpcq.launch.recovery.retry_policy`).
        failure: Class of the failure, once it has failed.
        faulty_node: Node on which the failure occurred, if not `node`.
        decision: What happens to the unit next.
        committed: Responses, or blocks of a checkpoint, that this attempt committed.
        facts: Measurements of the worker (seconds by phase, peak memory in bytes, versions, device) for the merge and
            the planner. `planned` holds the GPU class, the backend and the estimated seconds at submission.
    """

    unit: str
    attempt: int
    job_id: str
    node: str
    pid: int
    start: str
    launcher: Launcher = Launcher.LOCAL
    process: str = ""
    end: str | None = None
    outcome: Outcome = Outcome.RUNNING
    reason: str | None = None
    error: str | None = None
    total: int | None = None
    restored: int | None = None
    phase: str | None = None
    restart: int = 0
    gpus: int = 0
    oom_step: int = 0
    failure: Failure | None = None
    faulty_node: str = ""
    decision: Action | None = None
    committed: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    schema: int = 1


_MAX_GAP = 16
"""Number of consecutive records that a user may delete without hiding later ones."""

_ENUMS: dict[str, type[StrEnum]] = {
    "launcher": Launcher,
    "outcome": Outcome,
    "failure": Failure,
    "decision": Action,
}


class Attempt:
    """A running attempt. `update` may be called from any thread; the change is on disk when it returns.

    Attributes:
        path: File of the record.
        record: The record as last committed.
        batch_share: `EvaluateWork.batch_share` of this attempt.
        start_followers: Called before an engine starts: makes the other nodes of the unit start theirs, and returns
            this node's context (None: the unit runs on one node).
    """

    batch_share: float = 1.0

    def __init__(self, folder: Path, record: AttemptRecord, *, is_durable: bool = True) -> None:
        self.path = record_path(folder, record.unit, record.attempt)
        self.record = record
        self.start_followers: Callable[[], NodeContext | None] = lambda: None
        self._lock = threading.RLock()
        self._callbacks: list[Callable[[], object]] = []
        self._is_durable = is_durable
        self._commit()

    def update(self, **changes: Any) -> None:
        """Replace fields of the record; `facts` are merged into the existing ones."""
        with self._lock:
            facts = {**self.record.facts, **changes.pop("facts", {})}
            self.record = replace(self.record, facts=facts, **changes)
            self._commit()

    def on_termination_notice(self, callback: Callable[[], object]) -> None:
        """Register `callback`, to be called from another thread when the attempt's termination is announced.

        An attempt may end without an announcement: nothing may depend on the call.
        """
        self._callbacks.append(callback)

    def notify_termination(self) -> None:
        """Call the registered functions. Their errors are only printed: the attempt's own thread meets them too."""
        for callback in self._callbacks:
            try:
                callback()
            except (HpcqError, OSError):
                traceback.print_exc()

    def _commit(self) -> None:
        text = json.dumps(vars(self.record), indent=1, sort_keys=True) + "\n"
        write_text(self.path, text, is_durable=self._is_durable)


def new_attempt(folder: Path, record: AttemptRecord) -> Attempt:
    """Write `record` under the next free number and return the attempt; its own `attempt` number is ignored.

    No two processes get the same number: a process claims one by creating a folder, which only one process can do. A
    number stays unused if its claimant was killed before it wrote the record.

    Args:
        folder: Folder of the run's attempts.
        record: The record.

    Raises:
        StorageError: The record cannot be written.
    """
    with storage_errors(folder):
        make_folder(folder)
        used = _unit_numbers(folder, record.unit)
        number = max(used, default=0) + 1
        if number % BLOCK == 0:
            write_blocks(folder, record.unit, used, number)
        while True:
            claim = _claim(folder, record.unit, number)
            try:
                claim.mkdir()
            except FileExistsError:
                number += 1
                continue
            try:
                if not record_path(folder, record.unit, number).exists():
                    return Attempt(folder, replace(record, attempt=number))
            finally:
                claim.rmdir()
            number += 1


def read_attempts(folder: Path) -> dict[str, list[AttemptRecord]]:
    """Return every readable attempt in `folder`, by unit, in order. Fields of later versions are ignored.

    Raises:
        StorageError: The folder or a file cannot be read.
    """
    found = _read_all(_records(folder))
    blocks = [path for path in list_folder(folder) if path.suffix == SUFFIX and not path.name.startswith(".")]
    return _with_blocks(found, blocks)


def read_unit_attempts(folder: Path, unit: str) -> list[AttemptRecord]:
    """Return the attempts of one unit, in order, without reading those of other units.

    Raises:
        StorageError: The folder or a file cannot be read.
    """
    numbers = _unit_numbers(folder, unit)
    found = _read_all(record_path(folder, unit, number) for number in numbers)
    blocks = {block_path(folder, unit, number) for number in range(1, max(numbers, default=0) + 1, BLOCK)}
    return _with_blocks(found, sorted(blocks)).get(unit, [])


def _read_all(paths: Iterable[Path]) -> dict[str, list[AttemptRecord]]:
    found: dict[str, list[AttemptRecord]] = {}
    for path in paths:
        with storage_errors(path):
            record = _read(path)
        if record and (record.unit, record.attempt) == _unit_and_number(path):
            found.setdefault(record.unit, []).append(record)
    for records in found.values():
        records.sort(key=lambda record: record.attempt)
    return found


def _with_blocks(found: dict[str, list[AttemptRecord]], blocks: Iterable[Path]) -> dict[str, list[AttemptRecord]]:
    """Add the records in `blocks` that have no file of their own."""
    for path in blocks:
        for content in read_block(path):
            if (record := _record(content)) is not None:
                known = found.setdefault(record.unit, [])
                at = bisect.bisect_left(known, record.attempt, key=lambda one: one.attempt)
                if at == len(known) or known[at].attempt != record.attempt:
                    known.insert(at, record)
    return found


def _records(folder: Path) -> list[Path]:
    return [path for path in list_folder(folder) if path.suffix == ".json" and not path.name.startswith(".")]


def _unit_numbers(folder: Path, unit: str) -> list[int]:
    """Return the numbers of the unit's attempts that are in use, including those in blocks.

    A run has thousands of records, and each attempt starts with this: the folder is not listed. A number is free if its
    claimant was killed, and then its claim is still there, or if its record was deleted.
    """
    found, last, number = [], 0, 1
    with storage_errors(folder):
        while number <= last + _MAX_GAP:
            # In this order: a record is deleted after it is in its block.
            if _exists(record_path(folder, unit, number)) or _exists(block_path(folder, unit, number)):
                found.append(number)
                last = number
            elif _exists(_claim(folder, unit, number)):
                last = number
            number += 1
    return found


def _exists(path: Path) -> bool:
    """Return whether there is something at `path`; Path.exists would also return False for an error of the server."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _read(path: Path) -> AttemptRecord | None:
    """Return the record; None if the file is truncated or not an attempt record."""
    try:
        return _record(json.loads(read_regular(path)))
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
        return None


def _record(content: Any) -> AttemptRecord | None:
    """Return the record with this content; None if it is not an attempt record."""
    known = AttemptRecord.__dataclass_fields__
    try:
        record = _parse({key: value for key, value in content.items() if key in known})
    except (ValueError, TypeError, AttributeError):
        return None
    return record if _is_valid(record) else None


def _is_valid(record: AttemptRecord) -> bool:
    """Return whether the fields that other code computes with have their types."""
    facts = record.facts
    if not isinstance(facts, dict) or not isinstance(facts.get("planned", {}), dict):
        return False
    texts = (record.unit, record.job_id, record.node, record.process, record.faulty_node)
    counts = (record.attempt, record.pid, record.restart, record.gpus, record.oom_step, record.committed)
    optional = (record.total, record.restored, facts.get("asked_tokens"), facts.get("computed_tokens"))
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(count, int) for count in counts)
        and all(isinstance(count, int | None) for count in optional)
        and all(map(_is_time, filter(None, (record.start, record.end))))
        and bool(record.start)
    )


def _is_time(value: object) -> bool:
    try:
        return datetime.datetime.fromisoformat(str(value)).tzinfo is not None
    except ValueError:
        return False


def _parse(content: dict[str, Any]) -> AttemptRecord:
    """Return the record of these fields. A value of another version is read as unknown, and the reason says so."""
    given = {name: content[name] for name in _ENUMS if content.get(name) is not None}
    values = {name: parse_value(_ENUMS[name], value) for name, value in given.items()}
    unknown = [f"{name} {value!r}" for name, value in given.items() if values[name] != value]
    reason = content.get("reason")
    if unknown:
        message = f"written by another version of hpcq: unknown {', '.join(unknown)}"
        reason = f"{reason} ({message})" if reason else message
    return AttemptRecord(**{**content, **values, "reason": reason})


def _claim(folder: Path, unit: str, number: int) -> Path:
    return folder / f".{unit}.{number}.claim"


def _unit_and_number(path: Path) -> tuple[str, int] | None:
    """Return unit and number from the name of an attempt's file, whose content may be unreadable."""
    unit, _, number = path.stem.rpartition(".")
    return (unit, int(number)) if number.isdecimal() else None


def last_log_line(log: str | None, offset: int = 0) -> str:
    """Return the last line that a job printed before its unit started, and its log, for use in a reason.

    Args:
        log: Path of the log.
        offset: Size in bytes of what earlier starts of the job have printed.
    """
    try:
        content = read_tail(Path(log), _LAST_BYTES, offset) if log else b""
    except (OSError, IrregularFileError):
        return f"no log at {log}"
    lines = content.decode(errors="replace").split("\n")
    printed = [line.strip() for line in lines if line.strip()]
    return f"{printed[-1]} ({log})" if printed else f"no output in {log}"


def next_attempt_number(folder: Path, unit: str) -> int:
    """Return the number of the next attempt, from 1. Attempts that cannot be read count too."""
    return max(_unit_numbers(folder, unit), default=0) + 1
