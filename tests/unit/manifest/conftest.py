"""Fixtures: a separate working directory and cache per test, and manifests from text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hpcq.manifest import Context, load

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

LoadText = Callable[..., Context]


@pytest.fixture(autouse=True)
def _isolated_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty folder with an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def smallest() -> str:
    """The text of a manifest with the required keys only."""
    return SMALLEST


@pytest.fixture
def load_text() -> LoadText:
    """A function that writes a text to mine.toml and loads it with overrides."""

    def load_it(text: str, *overrides: str) -> Context:
        Path("mine.toml").write_text(text, encoding="utf-8")
        return load(Path("mine.toml"), overrides)

    return load_it
