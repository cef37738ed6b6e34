"""What is committed is whole, what fails leaves nothing, and the file system's refusals are sentences."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from hpcq.core.errors import StorageError
from hpcq.core.files import committed_file, committed_folder, storage_faults, write_text


@pytest.fixture
def small_files() -> Callable[[], AbstractContextManager[None]]:
    """Forbid files of more than a kibibyte, as a disk without room would."""

    class Limit(AbstractContextManager[None]):
        def __enter__(self) -> None:
            self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, self.limits[1]))

        def __exit__(self, *_: object) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)

    return Limit


def test_a_file_replaces_the_one_before_it_and_nothing_else_stays(tmp_path: Path) -> None:
    """The folder is made when needed; no temporary name is left."""
    for text in ("first", "second, é"):
        write_text(tmp_path / "a" / "b" / "file", text)
    assert (tmp_path / "a" / "b" / "file").read_text(encoding="utf-8") == "second, é"
    assert os.listdir(tmp_path / "a" / "b") == ["file"]  # noqa: PTH208 - hidden files too


@pytest.mark.parametrize("commit", [committed_file, committed_folder])
@pytest.mark.parametrize("leave", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_changes_nothing(
    commit: Callable[[Path], AbstractContextManager[Path]], leave: type[BaseException], tmp_path: Path
) -> None:
    """Neither a new name nor a temporary one, however the block is left."""

    def fail() -> None:
        with commit(tmp_path / "thing") as temporary:
            (temporary / "part" if temporary.is_dir() else temporary).write_text("half")
            raise leave

    with pytest.raises(leave):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_a_sentence_that_names_the_file_asked_for(
    tmp_path: Path, small_files: Callable[[], AbstractContextManager[None]]
) -> None:
    """The old content stays, and the sentence does not speak of a temporary name."""
    write_text(tmp_path / "file", "old")
    with small_files(), pytest.raises(StorageError, match="is larger than") as raised:
        write_text(tmp_path / "file", "new" * 1000)
    assert str(raised.value).startswith(f"{tmp_path / 'file'}: ")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_a_refusal_at_opening_names_the_file_asked_for(tmp_path: Path) -> None:
    """The system's own error carries the temporary name, which a user has never heard of."""
    path = tmp_path / "file"
    with pytest.raises(StorageError) as raised, committed_file(path) as temporary:
        raise PermissionError(errno.EACCES, "Permission denied", str(temporary))
    assert str(raised.value).startswith(f"{path}: permission denied")


@pytest.mark.parametrize("path", ["a/b/file", "a/file"])
def test_a_file_where_a_folder_should_be_is_a_sentence(path: str, tmp_path: Path) -> None:
    """A part of the path is a file: the folder itself, or one above it."""
    (tmp_path / "a").write_text("")
    with pytest.raises(StorageError, match=r"a file, not a folder|a file stands where a folder should be"):
        write_text(tmp_path / path, "text")


def test_a_folder_where_a_file_should_be_is_a_sentence(tmp_path: Path) -> None:
    """The folder is named, not a temporary name beside it, and nothing is written there."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(StorageError) as raised:
        write_text(folder, "text")
    assert str(raised.value) == f"{folder}: is a folder; name a file."
    assert list(tmp_path.rglob("*")) == [folder]


def test_other_errors_pass_untouched(tmp_path: Path) -> None:
    """What has no cure of its own is left to who knows more."""
    with pytest.raises(FileNotFoundError), storage_faults(tmp_path):
        (tmp_path / "missing").read_text()


def test_the_folder_that_was_first_stays(tmp_path: Path) -> None:
    """Two workers make the same thing: the second finds the first one's, and leaves nothing of its own."""
    for content in ("first", "second"):
        with committed_folder(tmp_path / "thing") as temporary:
            (temporary / "file").write_text(content)
    assert (tmp_path / "thing" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]
