"""Snapshots of the package: named by their content, shared by runs, removed when no run has a link to them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcq.core.paths import RunLayout
from hpcq.launch import package_snapshot
from hpcq.launch.package_snapshot import forget_snapshots, make_snapshot
from tests.slurm.synthetic_units import layout_at

LONG_AGO = time.time() - 7 * 86400


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package that stands for hpcq."""
    package = tmp_path / "checkout" / "hpcq"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("VERSION = 1\n")
    monkeypatch.setattr(package_snapshot, "PACKAGE", package)
    return package


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """A run."""
    return layout_at(tmp_path)


def names(layout: RunLayout) -> set[str]:
    """The names of the snapshots."""
    return {path.name for path in layout.packages.iterdir()}


def test_a_snapshot_has_what_a_wheel_has(layout: RunLayout) -> None:
    """Jobs import hpcq from it, and find its scripts and lock files there, although the checkout has links to them."""
    snapshot = make_snapshot(layout)
    code = "import hpcq.data as d, hpcq; print(hpcq.__file__, d.SBATCH, (d.MODULES / 'core.lock.txt').is_file())"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(snapshot.path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    package = snapshot.path / "hpcq"
    assert done.stdout.split() == [str(package / "__init__.py"), str(package / "data" / "sbatch"), "True"]
    assert [path for path in snapshot.path.rglob("*") if path.is_symlink()] == []


def test_a_damaged_snapshot_is_restored(layout: RunLayout, checkout: Path) -> None:
    """Observed: a site deleted old files of a snapshot, and all jobs of all later submissions failed."""
    (checkout / "batch").mkdir()
    (checkout / "batch" / "epilogue.py").write_text("STATUS = 0\n")
    snapshot = make_snapshot(layout)
    (snapshot.path / "hpcq" / "__init__.py").write_text("VERSION = 0\n")
    shutil.rmtree(snapshot.path / "hpcq" / "batch")
    assert make_snapshot(layout).path == snapshot.path
    assert (snapshot.path / "hpcq" / "__init__.py").read_text() == "VERSION = 1\n"
    assert (snapshot.path / "hpcq" / "batch" / "epilogue.py").read_text() == "STATUS = 0\n"
    assert names(layout) == {snapshot.path.name}


def test_a_change_of_the_checkout_does_not_reach_a_snapshot(layout: RunLayout, checkout: Path) -> None:
    """Observed: jobs that waited ran the changed code of the checkout, and failed if it had moved."""
    first = make_snapshot(layout)
    (checkout / "__init__.py").write_text("VERSION = 2\n")
    second = make_snapshot(layout)
    assert first.digest != second.digest
    shutil.rmtree(checkout)
    assert [(each.path / "hpcq" / "__init__.py").read_text() for each in (first, second)] == [
        "VERSION = 1\n",
        "VERSION = 2\n",
    ]


def test_runs_share_a_snapshot(tmp_path: Path, checkout: Path) -> None:
    """Another run, and the same one again, copy nothing; compiled modules do not count."""
    first = make_snapshot(layout_at(tmp_path, "one"))
    (checkout / "__pycache__").mkdir()
    (checkout / "__pycache__" / "x.pyc").write_text("compiled")
    assert make_snapshot(layout_at(tmp_path, "one")) == make_snapshot(layout_at(tmp_path, "two")) == first
    assert names(layout_at(tmp_path)) == {first.path.name}


def test_a_snapshot_without_a_link_is_removed(tmp_path: Path, layout: RunLayout, checkout: Path) -> None:
    """A run that has no jobs forgets its snapshots; the next one that is made removes old ones, not those of others."""
    other = layout_at(tmp_path, "other")
    made = []
    for version in range(3):
        (checkout / "__init__.py").write_text(f"VERSION = {version}\n")
        made.append(make_snapshot(other if version == 0 else layout).path)
        os.utime(made[-1], (LONG_AGO, LONG_AGO))
    forget_snapshots(layout)
    (checkout / "__init__.py").write_text("VERSION = 4\n")
    current = make_snapshot(layout).path
    assert names(layout) == {made[0].name, current.name}


def test_a_recent_snapshot_without_a_link_is_kept(layout: RunLayout, checkout: Path) -> None:
    """Another command may be about to make its link."""
    first = make_snapshot(layout).path
    forget_snapshots(layout)
    (checkout / "__init__.py").write_text("VERSION = 2\n")
    second = make_snapshot(layout).path
    assert names(layout) == {first.name, second.name}


def test_a_copy_that_was_killed_is_repeated(layout: RunLayout, checkout: Path) -> None:
    """A snapshot exists only once it is complete; what is left of an interrupted one is not used."""
    complete = make_snapshot(layout).path
    shutil.rmtree(complete)
    torn = complete.with_name(f".{complete.name}.00000000-1-0-00000000.part")
    torn.mkdir()
    assert make_snapshot(layout).path == complete
    assert (complete / "hpcq" / "__init__.py").is_file()
    assert checkout.is_dir()


def test_an_existing_snapshot_costs_little(layout: RunLayout) -> None:
    """Less than 0.2 s of CPU for the whole package (measured: 0.01 s)."""
    make_snapshot(layout)
    before_s = time.process_time()
    make_snapshot(layout)
    assert time.process_time() - before_s < 0.2
