"""A folder to type commands in, and one in which a rehearsal has been run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.command_line import REHEARSAL, Hpcq


@pytest.fixture
def hpcq(core_python: Path, tmp_path: Path) -> Hpcq:
    """The command line in an empty folder."""
    return Hpcq(python=core_python, folder=tmp_path)


@pytest.fixture(scope="session")
def rehearsed_once(core_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a rehearsal that ran to its end on this machine."""
    typed = Hpcq(python=core_python, folder=tmp_path_factory.mktemp("rehearsed"))
    done = typed("submit", typed.write(REHEARSAL))
    if done.code:
        pytest.fail(f"the rehearsal failed: {done.err}{done.out}")
    return typed.folder


@pytest.fixture
def rehearsed(core_python: Path, rehearsed_once: Path, tmp_path: Path) -> Hpcq:
    """A copy of that folder to do harm to; its lock and plan name the copy's place."""
    shutil.copytree(rehearsed_once, tmp_path, dirs_exist_ok=True, symlinks=True)
    for name in ("manifest.lock.toml", "plan.json"):
        path = tmp_path / "runs" / "rehearsal" / name
        path.write_text(path.read_text().replace(str(rehearsed_once), str(tmp_path)))
    return Hpcq(python=core_python, folder=tmp_path)
