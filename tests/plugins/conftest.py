"""Fixtures: a small plugin, whose declaration a test can change, and the process's umask."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DECLARATION = """\
schema = 1

[quantizers.theirs]
environment = "core"
distributions = ["NumPy"]
methods = ["rtn", "clever"]
calibrated_methods = ["clever"]
host_bytes_per_parameter = 3

[schemes.theirs-w8a16]
tool = "theirs"
method = "clever"
weights = "int8"
activations = "bf16"

[backends.scorer]
environment = "transformers"
distributions = ["lm-eval"]

[[kernels]]
backend = "scorer"
name = "scoring"
weights = ["bf16", "int8"]
activations = ["bf16"]
source = "theirs"
"""
ENTRY_POINTS = """\
[hpcq.quantizers]
theirs = their_package.tool:Theirs
[hpcq.backends]
scorer = their_package.tool:Scorer
"""

Install = Callable[..., Path]


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """Restore the umask, which the command line sets for the whole process."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a plugin, and return the folder of its package. Its code raises an exception if it is imported."""

    def install_it(
        declaration: str | None = DECLARATION,
        *,
        name: str = "Their_Plugin",
        version: str = "1.5",
        package: str = "their_package",
        entry_points: str = ENTRY_POINTS,
    ) -> Path:
        site = tmp_path / f"site-{name}-{version}"
        (site / package).mkdir(parents=True)
        (site / package / "__init__.py").write_text("raise AssertionError('the planner has imported a plugin')\n")
        if declaration is not None:
            (site / package / "hpcq-plugin.toml").write_text(declaration)
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points.replace("their_package", package))
        monkeypatch.syspath_prepend(str(site))
        return site / package

    return install_it
