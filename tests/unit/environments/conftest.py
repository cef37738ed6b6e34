"""Fixtures: a folder with small lock files, and one small package that pip finds without a network."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

LOCK = """\
# An environment with one small package.
tiny_package==1.2.3
other.package[extra,more]==2.0rc1  # a comment
"""


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """Return a folder with the lock file of an environment that can only be read, and of one that can be created."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "reading.lock.txt").write_text(LOCK)
    (folder / "making.lock.txt").write_text("tiny-package==1.2.3\n")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache; pip, in this process and its children, sees only the small package."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "tiny_package-1.2.3-py3-none-any.whl", "w") as wheel:
        info = "tiny_package-1.2.3.dist-info"
        wheel.writestr("tiny_package.py", "answer = 42\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-package\nVersion: 1.2.3\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"tiny_package.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    folder = tmp_path / "cache"
    monkeypatch.setenv("HPCQ_CACHE", str(folder))
    return folder
