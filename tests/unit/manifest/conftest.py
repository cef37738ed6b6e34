"""What tests of manifests share: a working directory and a cache of their own, and manifests made from text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hpcq.manifest import Manifest, load

SMALLEST = """\
[run]
name = "smallest"

[[models]]
id = "meta-llama/Llama-3.1-8B-Instruct"

[schemes]
use = ["bf16"]

[tasks]
use = ["arc_challenge"]
"""

LoadText = Callable[..., Manifest]


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in an empty folder, with an empty cache and without Slurm's commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def smallest() -> str:
    """The text of a manifest that says no more than it must."""
    return SMALLEST


@pytest.fixture
def load_text() -> LoadText:
    """A function that writes a text to mine.toml and loads it, with options."""

    def load_it(text: str, *options: str) -> Manifest:
        Path("mine.toml").write_text(text, encoding="utf-8")
        return load(Path("mine.toml"), options)

    return load_it
