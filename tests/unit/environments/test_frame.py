"""What the tests' own frame does where Slurm is missing, seen on a copy of it beside one test that needs Slurm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpcq.core import environments

SETTINGS = """\
[pytest]
markers =
    slurm: needs Slurm
addopts = --strict-markers -p no:cacheprovider
"""


@pytest.fixture
def frame(tmp_path: Path) -> Path:
    """A folder with the frame's conftest.py, and one test under slurm/."""
    shutil.copy(environments.CHECKOUT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "test_one.py").write_text("def test_one():\n    pass\n")
    return tmp_path


def run_without_slurm(frame: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the folder's tests where no Slurm command is on the PATH."""
    kept = {key: value for key, value in os.environ.items() if key != "CI"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", str(frame)],
        cwd=frame,
        env={**kept, "PATH": str(frame), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_tests_without_slurm_are_skipped_aloud(frame: Path) -> None:
    """Where there is no Slurm its tests are skipped, and the summary says how many and what to install."""
    done = run_without_slurm(frame)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout
    assert "NOT TESTED: Slurm" in done.stdout
    assert "1 tests need Slurm" in done.stdout


def test_tests_without_slurm_fail_in_continuous_integration(frame: Path) -> None:
    """Under CI=true a test that needs Slurm fails where there is none."""
    done = run_without_slurm(frame, CI="true")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "CI=true allows no skipping" in done.stdout
