"""Tests that need Slurm are skipped if Slurm is missing: checked with a copy of tests/conftest.py and one test."""

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
def copied_tests(tmp_path: Path) -> Path:
    """Return a folder with a copy of tests/conftest.py, and one test in slurm/."""
    shutil.copy(environments.CHECKOUT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "test_one.py").write_text("def test_one():\n    pass\n")
    return tmp_path


def run_without_slurm(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the tests in the folder without Slurm commands on the PATH."""
    kept = {key: value for key, value in os.environ.items() if key != "CI"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", str(folder)],
        cwd=folder,
        env={**kept, "PATH": str(folder), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_tests_without_slurm_are_skipped_and_reported(copied_tests: Path) -> None:
    """Without Slurm its tests are skipped, and the summary has their number and what to install."""
    done = run_without_slurm(copied_tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout
    assert "NOT TESTED: Slurm" in done.stdout
    assert "1 tests were skipped because Slurm is not installed" in done.stdout


def test_tests_without_slurm_fail_in_continuous_integration(copied_tests: Path) -> None:
    """With CI=true a test that needs Slurm fails if Slurm is missing."""
    done = run_without_slurm(copied_tests, CI="true")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "must not be skipped with CI=true" in done.stdout
