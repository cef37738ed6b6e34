"""FIFOs, devices and endless files in place of manifests, records and segments."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcq.core.attempts import read_attempts
from hpcq.core.errors import ManifestError, SegmentCorruptError
from hpcq.core.files import MAX_RECORD_BYTES, IrregularFileError, read_regular
from hpcq.manifest.toml_document import read_document
from hpcq.store.checksummed import open_checked


def endless(path: Path) -> None:
    """Make a sparse file that is larger than any record."""
    with path.open("wb") as file:
        file.truncate(MAX_RECORD_BYTES + 1)


KINDS: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "too large": endless,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_of_bounded_size_are_read(kind: str, tmp_path: Path) -> None:
    """Observed: a FIFO in place of an attempt or a manifest hangs every command; /dev/zero took 17 GB."""
    path = tmp_path / "unit.1.json"
    KINDS[kind](path)
    with pytest.raises(IrregularFileError):
        read_regular(path)
    assert read_attempts(tmp_path) == {}
    with pytest.raises(ManifestError, match="cannot be read"):
        read_document(path)
    with pytest.raises(SegmentCorruptError), open_checked(path, form="segment", schema=1):
        pass
