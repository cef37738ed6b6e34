"""Digests of models, data sets and texts: what changes them, and how often a file is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcq.core import digests
from hpcq.core.digests import (
    digest_of_items,
    digest_of_model,
    digest_of_model_files,
    digest_of_text,
    known_digest,
    known_digest_of_model,
    remember_digest,
    rename_in_cache,
)
from hpcq.core.files import digest_of_file


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


def test_a_renamed_folder_is_known(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a rename no file is read again, and a change is found under the new name."""
    digest, after = digest_of_model(checkpoint), checkpoint.with_name("renamed")
    checkpoint.rename(after)
    assert known_digest_of_model(after) is None
    rename_in_cache(checkpoint, after)
    with monkeypatch.context() as patched:
        patched.delattr(digests, "digest_of_file")
        assert known_digest_of_model(after) == digest
    (after / "model.safetensors").write_bytes(b"other")
    assert known_digest_of_model(after) not in (None, digest)


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


def test_known_digests_give_the_digest_of_a_model(checkpoint: Path) -> None:
    """The digest follows from the SHA-256 of all files; those that cannot change a result do not count."""
    (checkpoint / "figures").mkdir()
    (checkpoint / "figures" / "x.json").write_text("{}")
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    known = {path.relative_to(checkpoint).as_posix(): digest_of_file(path) for path in files}
    assert digest_of_model_files(known) == digest_of_model(checkpoint)


def test_a_remembered_digest_is_used_until_the_file_changes(checkpoint: Path) -> None:
    """A digest that was computed elsewhere need not be computed again."""
    weights = checkpoint / "model.safetensors"
    assert known_digest(weights) is None
    remember_digest(weights, "0" * 64)
    assert known_digest(weights) == digest_of_text(weights) == "0" * 64
    weights.write_text("changed")
    assert known_digest(weights) is None


@pytest.mark.parametrize("content", ["", "[]", '{"x": 1}', '{"x": [1, 2, 3]}', "\0"])
def test_a_damaged_cache_is_rewritten(checkpoint: Path, content: str) -> None:
    """A cache that is not valid counts as empty, and is rewritten."""
    before = digest_of_model(checkpoint)
    cache = checkpoint.parent / "cache" / "digests.json"
    good = cache.read_text()
    cache.write_text(content)
    assert digest_of_model(checkpoint) == before
    assert cache.read_text() == good


@pytest.mark.parametrize("name", ["modeling_x.py", "spiece.model", "x.tiktoken", "letters.vocab", "vocab.bpe"])
def test_code_and_tokenizers_of_every_kind_count(checkpoint: Path, name: str) -> None:
    """Modules of the checkpoint, and vocabularies under any name, can change a result.

    Observed: tokenizers under other names, such as spiece.model and qwen.tiktoken, did not count.
    """
    before = digest_of_model(checkpoint)
    (checkpoint / name).write_text("one")
    first = digest_of_model(checkpoint)
    (checkpoint / name).write_text("two")
    assert len({before, first, digest_of_model(checkpoint)}) == 3


def test_chat_templates_in_folders_count_and_scripts_do_not(checkpoint: Path) -> None:
    """A publisher's scripts in a folder are not read; `digest_of_model_files` counts the same files."""
    before = digest_of_model(checkpoint)
    (checkpoint / "inference").mkdir()
    (checkpoint / "inference" / "generate.py").write_text("print()")
    assert digest_of_model(checkpoint) == before
    (checkpoint / "additional_chat_templates").mkdir()
    (checkpoint / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    assert digest_of_model(checkpoint) != before
    names = [path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()]
    assert digest_of_model_files({name: digest_of_file(checkpoint / name) for name in names}) == digest_of_model(
        checkpoint
    )


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
