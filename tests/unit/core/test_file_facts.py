"""Facts about files that are kept until the file changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.core.file_facts import remembered


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file with one letter, with an empty cache."""
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("a")
    return tmp_path / "file"


def fact(file: Path, read: list[str], *, name: str = "texts", version: str = "1") -> str:
    """Return the content of the file; `read` receives it if the file is read."""

    def find(path: Path) -> str:
        read.append(path.read_text())
        return read[-1]

    return str(remembered(file, find, name=name, version=version))


def test_a_file_is_read_again_only_after_a_change(file: Path) -> None:
    """Of the file, of the version, or to another fact."""
    read: list[str] = []
    assert [fact(file, read), fact(file, read)] == ["a", "a"]
    assert read == ["a"]
    file.write_text("bb")
    assert fact(file, read) == "bb"
    assert fact(file, read, version="2") == "bb"
    assert fact(file, read, version="2", name="others") == "bb"
    assert read == ["a", "bb", "bb", "bb"]


@pytest.mark.parametrize("content", ["", "[]", '{"version": "1"}', '{"version": "1", "files": {"FILE": "?"}}'])
def test_a_damaged_cache_counts_as_empty(file: Path, content: str) -> None:
    """The file is read."""
    cache = file.parent / "cache" / "facts" / "texts.json"
    fact(file, [])
    cache.write_text(content.replace("FILE", str(file)))
    read: list[str] = []
    assert (fact(file, read), read) == ("a", ["a"])


def test_without_a_cache_the_file_is_read_each_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file stands where its folder should be."""
    monkeypatch.setenv("HPCQ_CACHE", str(file))
    read: list[str] = []
    assert [fact(file, read), fact(file, read)] == ["a", "a"]
    assert len(read) == 2
