"""Tests that use the user's folders fail: checked with a copy of tests/conftest.py next to a finished run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.isolation import CHECKOUT

HEADER = """\
import os, subprocess, sys
from pathlib import Path
import pytest
from hpcq.core.paths import cache_folder
CHECKOUT = Path(__file__).parents[1]
"""
READ = "(CHECKOUT / 'runs/quickstart/plan.json').read_text()"
ISOLATED = [
    "(cache_folder() / 'models/tiny/config.json').read_text()",
    "(cache_folder() / 'digests.json').write_text('{}')",
    "(cache_folder() / '.digests.json.0a1b2c3d-1-2-0a1b2c3d.part').write_text('{}')",
    "subprocess.run([sys.executable, '-c', 'pass'], check=True)",
    "subprocess.run(['ls', CHECKOUT], check=True)",
    "(CHECKOUT / 'pytest.ini').read_text()",
]
NOT_ISOLATED = [
    READ,
    "list((CHECKOUT / 'runs').iterdir())",
    "(CHECKOUT / 'checkpoints').mkdir()",
    "(CHECKOUT / 'logs/quickstart').mkdir(parents=True)",
    "os.rename(CHECKOUT / 'runs/quickstart', CHECKOUT / 'moved')",
    "os.chdir(CHECKOUT)",
    "subprocess.run(['true'], cwd=CHECKOUT)",
    "subprocess.run(['touch', CHECKOUT / 'runs/new'])",
    "Path('runs').mkdir()",
    "subprocess.run(['touch', 'results.h5'])",
    "(cache_folder() / 'models/other').mkdir()",
    "(cache_folder() / 'new').touch()",
    f"with pytest.raises(Exception): {READ}",
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout with a finished run, and a cache next to it."""
    folder = tmp_path / "checkout"
    (folder / "tests").mkdir(parents=True)
    for name in ("conftest.py", "isolation.py"):
        shutil.copy(CHECKOUT / "tests" / name, folder / "tests")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider --import-mode=importlib\n")
    (folder / "runs" / "quickstart").mkdir(parents=True)
    (folder / "runs" / "quickstart" / "plan.json").write_text("{}")
    (tmp_path / "cache" / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "cache" / "models" / "tiny" / "config.json").write_text("{}")
    return folder


def run_test(checkout: Path, *statements: str) -> tuple[int, str]:
    """Run one test per statement in the checkout; return pytest's exit code and its output."""
    tests = "".join(f"def test_{number}():\n    {text}\n" for number, text in enumerate(statements))
    (checkout / "tests" / "test_some.py").write_text(HEADER + tests)
    paths = os.pathsep.join([str(checkout), os.environ["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(checkout), "-rfE"],
        env={**os.environ, "PYTHONPATH": paths, "HPCQ_CACHE": str(checkout.parent / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def listing(folder: Path) -> dict[Path, int]:
    """Return all files and folders with their modification times, without those of Python and of the tests."""
    found = [path for path in folder.rglob("*") if "tests" not in path.parts]
    return {path: path.lstat().st_mtime_ns for path in found}


def test_a_test_may_read_the_cache_and_the_sources(checkout: Path) -> None:
    """Reading staged data, writing the digests of files and starting processes elsewhere is isolated."""
    before = listing(checkout.parent)
    code, output = run_test(checkout, *ISOLATED)
    assert code == 0, output
    assert listing(checkout.parent) == before


def test_a_test_that_is_not_isolated_fails_by_name(checkout: Path) -> None:
    """Reading or changing the checkout's runs, a process in the checkout and new files fail that test and no other."""
    before = listing(checkout.parent)
    code, output = run_test(checkout, *NOT_ISOLATED, "pass")
    assert code == 1, output
    failed = {line.split("::")[1].split()[0] for line in output.splitlines() if line.startswith("ERROR")}
    assert failed == {f"test_{number}" for number in range(len(NOT_ISOLATED))}, output
    assert listing(checkout.parent) == before
