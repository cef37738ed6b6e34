"""Files with the numbers of items."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.manifest.item_files import ItemFileError, read_item_file

VALID = {
    "[0, 2, 1]": (("piqa", "0-2"),),
    '{"mmlu_anatomy": [3], "mmlu_law": [0]}': (("mmlu_anatomy", "3"), ("mmlu_law", "0")),
    "3\n\n 5 \n": (("piqa", "3,5"),),
    "mmlu_anatomy 3\nmmlu_anatomy 4\n": (("mmlu_anatomy", "3-4"),),
}
INVALID = {
    "": "lists no items",
    "[]": "lists no items",
    "[0, -1]": "has -1 for 'piqa'",
    "[0, 1.5]": "has 1.5 for 'piqa'",
    "[true]": "has True for 'piqa'",
    '{"piqa": 3}': "has no list of numbers for 'piqa'",
    '{"piqa": [3}': "is not valid JSON",
    '{"piqa": [3], "piqa": [4]}': "^has 'piqa' twice",
    "3\nfour\n": r"has an invalid line 2 \('four'\)",
    "a b 3\n": "has an invalid line 1",
}


@pytest.mark.parametrize(("text", "listed"), VALID.items())
def test_lists_of_items(tmp_path: Path, text: str, listed: tuple[tuple[str, str], ...]) -> None:
    """JSON as for lm-eval's --samples, or lines."""
    (tmp_path / "items").write_text(text)
    assert read_item_file(tmp_path / "items", "piqa").listed == listed


@pytest.mark.parametrize(("text", "clause"), INVALID.items())
def test_invalid_lists(tmp_path: Path, text: str, clause: str) -> None:
    """The message says where and what."""
    (tmp_path / "items").write_text(text)
    with pytest.raises(ItemFileError, match=clause):
        read_item_file(tmp_path / "items", "piqa")


def test_unreadable_files(tmp_path: Path) -> None:
    """A missing file, and one in another encoding."""
    with pytest.raises(ItemFileError, match=r"cannot be read \(No such file or directory\)"):
        read_item_file(tmp_path / "items", "piqa")
    with pytest.raises(ItemFileError, match=r"cannot be read \(it is not a regular file\)"):
        read_item_file(Path("/dev/zero"), "piqa")
    (tmp_path / "items").write_bytes(b"3\n\xff")
    with pytest.raises(ItemFileError, match=r"is not UTF-8 \(byte 2\)"):
        read_item_file(tmp_path / "items", "piqa")
