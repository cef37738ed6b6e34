"""`hpcq init` on a machine without Slurm."""

from __future__ import annotations

from hpcq.manifest import load, resolve
from tests.command_line import Hpcq


def test_the_example_manifest_can_be_planned(hpcq: Hpcq) -> None:
    """It is complete and uses the local profile."""
    assert hpcq("init").code == 0
    resolved = resolve(load(hpcq.folder / "manifest.toml"))
    assert (resolved.profile.name, len(resolved.pairs), len(resolved.tasks)) == ("local", 2, 2)
    assert hpcq("plan", "manifest.toml").code == 0


def test_a_file_is_replaced_only_on_request(hpcq: Hpcq) -> None:
    """Without --overwrite the file stays as it was, exit code 2; with it the file is replaced."""
    mine = hpcq.write("mine")
    done = hpcq("init", mine)
    assert (done.code, mine.read_text()) == (2, "mine")
    assert "add --overwrite" in done.err
    assert hpcq("init", mine, "--overwrite").code == 0
    assert mine.read_text() != "mine"


def test_without_slurm_there_is_no_profile(hpcq: Hpcq) -> None:
    """Exit code 3, the fix, and no file is written."""
    done = hpcq("init", "--from-sinfo", env={"PATH": "/nonexistent"})
    assert done.code == 3
    assert "log in to the cluster" in done.err
    assert list(hpcq.folder.iterdir()) == []
