"""Fixtures: a folder with small lock files, and small packages that uv finds by pip's settings (no network)."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from hpcq.core import paths

LOCK = """\
# An environment with one small package.
tiny_package==1.2.3 \\
    --hash=sha256:00 \\
    --hash=sha256:11
other.package[extra,more]==2.0rc1  # a comment
"""


def make_wheel(folder: Path, name: str, version: str) -> str:
    """Write a wheel with one module to `folder`, and return its pin with its hash."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        info = f"{name}-{version}.dist-info"
        wheel.writestr(f"{name}.py", "answer = 42\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{name}=={version} \\\n    --hash=sha256:{digest}\n"


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """Return the folder of packages that pip's settings name."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


@pytest.fixture
def modules(tmp_path: Path, wheels: Path) -> Path:
    """Return a folder with the lock file of an environment that can only be read, and of one that can be created."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "reading.lock.txt").write_text(LOCK)
    (folder / "making.lock.txt").write_text(make_wheel(wheels, "tiny_package", "1.2.3"))
    return folder


@pytest.fixture
def cache(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cache that contains only uv; pip's settings, for this process and its children, name only `wheels`."""
    folder = tmp_path / "cache"
    folder.mkdir()
    tools = paths.cache_folder() / "tools"
    if tools.is_dir():  # else uv is on the PATH
        (folder / "tools").symlink_to(tools)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("HPCQ_CACHE", str(folder))
    return folder
