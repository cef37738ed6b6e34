"""Public Python API: the examples that need Slurm."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from hpcq import api


@pytest.mark.usefixtures("cluster")
def test_the_example_of_init_profile_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes a profile of the cluster that this machine belongs to."""
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestFinder().find(api.init_profile, "init_profile")
    assert doctest.DocTestRunner().run(example).failed == 0
    assert "gpu_classes" in (tmp_path / "clusters" / "mine.toml").read_text(encoding="utf-8")
