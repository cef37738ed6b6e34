"""The umask of a run's files, and of caches."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcq.core.umask import USER_UMASK_VARIABLE, make_private, user_umask


@pytest.fixture(autouse=True)
def _umask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(USER_UMASK_VARIABLE, "")
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    """Return the permissions of a new file."""
    path.touch()
    return stat.S_IMODE(path.stat().st_mode)


def test_files_are_private_except_those_of_a_cache(tmp_path: Path) -> None:
    """Only within `user_umask` the user's umask decides."""
    make_private()
    assert mode(tmp_path / "run") == 0o600
    with user_umask():
        assert mode(tmp_path / "cache") == 0o644
    assert mode(tmp_path / "results") == 0o600


def test_without_a_recorded_umask_nothing_changes(tmp_path: Path) -> None:
    """A program that uses the Python API keeps its umask."""
    with user_umask():
        assert mode(tmp_path / "cache") == 0o644
