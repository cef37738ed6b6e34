"""Committed files are complete, failures leave nothing, and errors of the file system become one sentence."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from hpcq.core.errors import StorageError
from hpcq.core.files import committed_file, committed_folder, storage_errors, write_text


@pytest.fixture
def small_files() -> Callable[[], AbstractContextManager[None]]:
    """Limit files to 1 KiB, to simulate a full disk."""

    class Limit(AbstractContextManager[None]):
        def __enter__(self) -> None:
            self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, self.limits[1]))

        def __exit__(self, *_: object) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)

    return Limit


def test_a_committed_file_replaces_the_previous_one(tmp_path: Path) -> None:
    """Missing folders are created; no temporary name is left."""
    for text in ("first", "second, é"):
        write_text(tmp_path / "a" / "b" / "file", text)
    assert (tmp_path / "a" / "b" / "file").read_text(encoding="utf-8") == "second, é"
    assert os.listdir(tmp_path / "a" / "b") == ["file"]  # noqa: PTH208 - hidden files too


@pytest.mark.parametrize("commit", [committed_file, committed_folder])
@pytest.mark.parametrize("leave", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failing_block_changes_nothing(
    commit: Callable[[Path], AbstractContextManager[Path]], leave: type[BaseException], tmp_path: Path
) -> None:
    """Neither a new nor a temporary name is left, with any exception."""

    def fail() -> None:
        with commit(tmp_path / "thing") as temporary:
            (temporary / "part" if temporary.is_dir() else temporary).write_text("half")
            raise leave

    with pytest.raises(leave):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_reported_with_the_requested_path(
    tmp_path: Path, small_files: Callable[[], AbstractContextManager[None]]
) -> None:
    """The old content stays, and the message does not mention a temporary name."""
    write_text(tmp_path / "file", "old")
    with small_files(), pytest.raises(StorageError, match="is larger than") as raised:
        write_text(tmp_path / "file", "new" * 1000)
    assert str(raised.value).startswith(f"{tmp_path / 'file'}: ")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_an_error_on_opening_is_reported_with_the_requested_path(tmp_path: Path) -> None:
    """The OSError has the temporary name, which a user does not know."""
    path = tmp_path / "file"
    with pytest.raises(StorageError) as raised, committed_file(path) as temporary:
        raise PermissionError(errno.EACCES, "Permission denied", str(temporary))
    assert str(raised.value).startswith(f"{path}: permission denied")


@pytest.mark.parametrize("path", ["a/b/file", "a/file"])
def test_a_file_in_place_of_a_folder_is_reported(path: str, tmp_path: Path) -> None:
    """A part of the path is a file: the folder itself, or one of its parents."""
    (tmp_path / "a").write_text("")
    with pytest.raises(StorageError, match=r"a file, not a folder|a file exists where a folder should be"):
        write_text(tmp_path / path, "text")


def test_a_folder_in_place_of_a_file_is_reported(tmp_path: Path) -> None:
    """The message names the folder, not a temporary name, and nothing is written."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(StorageError) as raised:
        write_text(folder, "text")
    assert str(raised.value) == f"{folder}: is a folder; name a file."
    assert list(tmp_path.rglob("*")) == [folder]


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    """Errors without a hint are left to the caller."""
    with pytest.raises(FileNotFoundError), storage_errors(tmp_path):
        (tmp_path / "missing").read_text()


def test_the_first_committed_folder_stays(tmp_path: Path) -> None:
    """Two workers create the same folder: the second keeps the first one's, and leaves nothing else."""
    for content in ("first", "second"):
        with committed_folder(tmp_path / "thing") as temporary:
            (temporary / "file").write_text(content)
    assert (tmp_path / "thing" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]
