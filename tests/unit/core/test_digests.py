"""Digests of models, data sets and texts: what changes them, and how often a file is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcq.core import digests
from hpcq.core.digests import digest_of_items, digest_of_model, digest_of_text


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a small checkpoint, with its own cache."""
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.model", "chat_template.jinja", "README.md"):
        (folder / name).write_text(name)
    return folder


def test_moving_and_touching_a_checkpoint_keeps_its_digest(checkpoint: Path) -> None:
    """The digest covers names and contents, not the folder or the times."""
    before = digest_of_model(checkpoint)
    moved = checkpoint.rename(checkpoint.with_name("moved"))
    os.utime(moved / "config.json", (1, 1))
    (moved / "README.md").write_text("a better description")
    assert digest_of_model(moved) == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.model", "chat_template.jinja"])
def test_every_file_that_can_change_a_result_counts(checkpoint: Path, name: str) -> None:
    """Different weights, configuration, tokenizer or chat template change the digest, and so does a missing file."""
    before = digest_of_model(checkpoint)
    (checkpoint / name).write_text("something else")
    changed = digest_of_model(checkpoint)
    (checkpoint / name).unlink()
    assert len({before, changed, digest_of_model(checkpoint)}) == 3


def test_a_file_is_read_once(checkpoint: Path) -> None:
    """A file with known size, modification time and inode is not read again; a changed file is."""
    before = digest_of_model(checkpoint)
    weights = checkpoint / "model.safetensors"
    stamp = weights.stat()
    with weights.open("r+") as content:
        content.write("Model")
    os.utime(weights, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert digest_of_model(checkpoint) == before
    os.utime(weights, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert digest_of_model(checkpoint) != before


@pytest.mark.parametrize("content", ["", "[]", '{"x": 1}', '{"x": [1, 2, 3]}', "\0"])
def test_a_damaged_cache_is_rewritten(checkpoint: Path, content: str) -> None:
    """A cache that is not valid counts as empty, and is rewritten."""
    before = digest_of_model(checkpoint)
    cache = checkpoint.parent / "cache" / "digests.json"
    good = cache.read_text()
    cache.write_text(content)
    assert digest_of_model(checkpoint) == before
    assert cache.read_text() == good


def test_a_cache_that_cannot_be_written_is_ignored(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the cache folder cannot be created, the digest is the same."""
    before = digest_of_model(checkpoint)
    monkeypatch.setenv("HPCQ_CACHE", str(checkpoint / "config.json" / "cache"))
    assert digest_of_model(checkpoint) == before


def test_the_digest_of_a_data_set_covers_its_splits(checkpoint: Path) -> None:
    """The digest covers the .jsonl files with their names, and no other file."""
    folder = checkpoint.with_name("items")
    folder.mkdir()
    (folder / "test.jsonl").write_text("{}\n")
    before = digest_of_items(folder)
    (folder / "NOTES.txt").write_text("notes")
    assert digest_of_items(folder) == before
    (folder / "test.jsonl").rename(folder / "validation.jsonl")
    assert digest_of_items(folder) != before


def test_a_texts_digest_is_the_plain_sha_256(checkpoint: Path) -> None:
    """A text's digest equals sha256sum, and the digest that a worker computes of the file."""
    assert digest_of_text(checkpoint / "config.json") == digests.digest_of_file(checkpoint / "config.json")
