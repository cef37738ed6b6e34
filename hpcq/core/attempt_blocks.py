"""Blocks: the records of `BLOCK` older attempts of one unit in one file, for units that start hundreds of times.

A block has fixed numbers (1 to 64, 65 to 128 …). It is written from the files of the records, which are then deleted. A
file takes precedence over the block, because a record that changes later has a file again. A reader looks for files
first and then for blocks. So it finds every record, also if a block is written at the same time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hpcq.core.files import IrregularFileError, read_regular, storage_errors, write_text

BLOCK = 64
"""Number of attempts in a block. The latest `BLOCK` attempts, at least, have a file each."""

SUFFIX = ".attempts"
"""Not `.json`: each such file in the folder is one attempt."""


def record_path(folder: Path, unit: str, number: int) -> Path:
    """Return the file of one attempt."""
    return folder / f"{unit}.{number}.json"


def block_path(folder: Path, unit: str, number: int) -> Path:
    """Return the file of the block that may have attempt `number`."""
    first = (number - 1) // BLOCK * BLOCK + 1
    return folder / f"{unit}.{first}-{first + BLOCK - 1}{SUFFIX}"


def read_block(path: Path) -> list[dict[str, Any]]:
    """Return the records in a block, as their files had them; none if there is no such file or it is damaged.

    Raises:
        StorageError: The file cannot be read.
    """
    try:
        with storage_errors(path):
            content = json.loads(read_regular(path))
    except (FileNotFoundError, IrregularFileError, ValueError):
        return []
    records = content.get("attempts") if isinstance(content, dict) else None
    return [record for record in records or () if isinstance(record, dict)]


def write_blocks(folder: Path, unit: str, numbers: Iterable[int], newest: int) -> None:
    """Move the records `numbers` to blocks, except those of the latest attempts. Damaged records stay.

    Any number of processes may do this at once: each first reads the files and then the block, so that its block has
    everything that the block of another process has.

    Raises:
        StorageError: A file cannot be read or written.
    """
    blocks: dict[Path, list[int]] = {}
    for number in numbers:
        if (number - 1) // BLOCK < newest // BLOCK - 1:
            blocks.setdefault(block_path(folder, unit, number), []).append(number)
    for path, members in blocks.items():
        found = {number: record for number in members if (record := _read(folder, unit, number))}
        if not found:
            continue
        known: dict[Any, dict[str, Any]] = {record.get("attempt"): record for record in read_block(path)}
        records = [*(known | found).values()]
        write_text(path, json.dumps({"schema": 1, "attempts": records}, sort_keys=True) + "\n")
        stored = {record.get("attempt"): record for record in read_block(path)}
        for number, record in found.items():
            if stored.get(number) == record == _read(folder, unit, number):
                with storage_errors(path):
                    record_path(folder, unit, number).unlink(missing_ok=True)


def _read(folder: Path, unit: str, number: int) -> dict[str, Any] | None:
    path = record_path(folder, unit, number)
    try:
        with storage_errors(path):
            record = json.loads(read_regular(path))
    except (FileNotFoundError, IsADirectoryError, ValueError):  # IrregularFileError is a ValueError
        return None
    is_own = isinstance(record, dict) and (record.get("unit"), record.get("attempt")) == (unit, number)
    return record if is_own else None
