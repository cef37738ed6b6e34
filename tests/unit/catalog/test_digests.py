"""Digests of what a run reads: what changes them, what does not, and how often a file is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcq.core import digests
from hpcq.core.digests import digest_of_items, digest_of_model, digest_of_text


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkpoint, with a cache of its own."""
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.model", "chat_template.jinja", "README.md"):
        (folder / name).write_text(name)
    return folder


def test_a_moved_and_touched_checkpoint_is_the_same(checkpoint: Path) -> None:
    """The digest knows names and contents, and neither the folder nor the time."""
    before = digest_of_model(checkpoint)
    moved = checkpoint.rename(checkpoint.with_name("moved"))
    os.utime(moved / "config.json", (1, 1))
    (moved / "README.md").write_text("a better description")
    assert digest_of_model(moved) == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.model", "chat_template.jinja"])
def test_every_file_that_can_change_a_result_counts(checkpoint: Path, name: str) -> None:
    """Other weights, another configuration, tokenizer or chat template make another model; so does a file less."""
    before = digest_of_model(checkpoint)
    (checkpoint / name).write_text("something else")
    changed = digest_of_model(checkpoint)
    (checkpoint / name).unlink()
    assert len({before, changed, digest_of_model(checkpoint)}) == 3


def test_a_file_is_read_once(checkpoint: Path) -> None:
    """A file whose size, time of change and inode are known is not read again; one that was changed is."""
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
def test_a_damaged_cache_costs_only_time(checkpoint: Path, content: str) -> None:
    """A cache that is no such thing is an empty one, and is written anew."""
    before = digest_of_model(checkpoint)
    cache = checkpoint.parent / "cache" / "digests.json"
    good = cache.read_text()
    cache.write_text(content)
    assert digest_of_model(checkpoint) == before
    assert cache.read_text() == good


def test_a_cache_that_cannot_be_written_is_no_hindrance(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cache's folder cannot be made the digest is the same."""
    before = digest_of_model(checkpoint)
    monkeypatch.setenv("HPCQ_CACHE", str(checkpoint / "config.json" / "cache"))
    assert digest_of_model(checkpoint) == before


def test_items_are_their_splits(checkpoint: Path) -> None:
    """The digest of items is that of their .jsonl files by name, and of nothing beside them."""
    folder = checkpoint.with_name("items")
    folder.mkdir()
    (folder / "test.jsonl").write_text("{}\n")
    before = digest_of_items(folder)
    (folder / "NOTES.txt").write_text("beside")
    assert digest_of_items(folder) == before
    (folder / "test.jsonl").rename(folder / "validation.jsonl")
    assert digest_of_items(folder) != before


def test_a_texts_digest_is_the_plain_sha_256(checkpoint: Path) -> None:
    """Anybody can check a text with sha256sum, and a worker does with the digest of its file."""
    assert digest_of_text(checkpoint / "config.json") == digests.digest_of_file(checkpoint / "config.json")
