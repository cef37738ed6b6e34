"""Programs that imitate other sites' Slurm: a folder per site, with the clients that its PATH has first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SITES = Path(__file__).resolve().parent


def enter_site(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Put the clients of a site first in PATH."""
    folder = SITES / name
    assert folder.is_dir(), folder
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
