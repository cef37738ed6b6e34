"""Fixtures: the command line in an empty folder, and in a folder with a finished run with synthetic responses."""

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
def finished_once(core_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished local run."""
    hpcq = Hpcq(python=core_python, folder=tmp_path_factory.mktemp("finished"))
    done = hpcq("submit", hpcq.write(REHEARSAL))
    if done.code:
        pytest.fail(f"the run failed: {done.err}{done.out}")
    return hpcq.folder


@pytest.fixture
def finished(core_python: Path, finished_once: Path, tmp_path: Path) -> Hpcq:
    """The command line in a copy of that folder, whose files have the paths of the copy."""
    shutil.copytree(finished_once, tmp_path, dirs_exist_ok=True, symlinks=True)
    for name in ("manifest.lock.toml", "merge.json", "plan.json"):
        path = tmp_path / "runs" / "rehearsal" / name
        path.write_text(path.read_text().replace(str(finished_once), str(tmp_path)))
    return Hpcq(python=core_python, folder=tmp_path)
