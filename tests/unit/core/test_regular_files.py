"""FIFOs, devices and endless files in place of manifests, records and segments."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcq.core.attempts import last_log_line, read_attempts
from hpcq.core.errors import ManifestError, SegmentCorruptError
from hpcq.core.files import MAX_RECORD_BYTES, IrregularFileError, read_regular, read_tail
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


@pytest.mark.timeout(60)
def test_only_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    """A job may have printed gigabytes; a FIFO or a device in place of its log is no log."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(1 << 40)  # sparse
        file.seek(0, os.SEEK_END)
        file.write(b"\nfirst\nlast\n")
    assert last_log_line(str(log)) == f"last ({log})"
    assert read_tail(log, 11) == b"first\nlast\n"
    assert read_tail(log, 1 << 20, (1 << 40) + 7) == b"last\n"
    assert read_tail(log, 5, (1 << 40) + 100) == b""
    for kind in ("FIFO", "device"):
        path = tmp_path / kind
        KINDS[kind](path)
        assert last_log_line(str(path)) == f"no log at {path}"
