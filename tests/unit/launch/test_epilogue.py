"""The trap that sees to a unit that ended badly: when it acts, by which interpreter, and what the shell leaves with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hpcq.launch.job_script import script

RECORDER = """
import sys, pathlib
pathlib.Path(sys.argv[1], "told").write_text(" ".join(sys.argv[2:]))
sys.exit(int(pathlib.Path(sys.argv[1], "answer").read_text()))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package hpcq whose aftermath only writes down that it was called."""
    (tmp_path / "package" / "hpcq").mkdir(parents=True)
    (tmp_path / "package" / "hpcq" / "__init__.py").touch()
    (tmp_path / "package" / "hpcq" / "aftermath.py").write_text(RECORDER)
    return tmp_path / "package"


def leave(
    package: Path, command: str, *, when: str = "failed", answer: int = 1, pythons: tuple[str, ...] = (sys.executable,)
) -> tuple[int, str | None]:
    """What a shell leaves with that runs `command` with the trap set, and what the aftermath was told."""
    folder = package.parent
    (folder / "answer").write_text(str(answer))
    words = [str(script("epilogue.sh")), when, str(folder), str(package), *pythons]
    text = f"set -euo pipefail; . {' '.join(words)}; {command}"
    with (folder / "log").open("ab") as log:
        done = subprocess.run(["bash", "-c", text], stdout=log, stderr=log, check=False, timeout=60)
    told = folder / "told"
    return done.returncode, told.read_text() if told.exists() else None


def test_it_is_called_with_the_status_and_changes_nothing(package: Path) -> None:
    """The shell leaves as it would have left."""
    assert leave(package, "bash -c 'exit 71'") == (71, "71 0")


def test_a_unit_that_is_done_lets_the_shell_leave_well(package: Path) -> None:
    """However its process ended."""
    assert leave(package, "bash -c 'kill -SEGV $$'", answer=0) == (0, "139 0")


@pytest.mark.parametrize(("when", "told"), [("failed", None), ("always", "0 0")])
def test_a_good_end_is_seen_to_only_where_that_is_asked(package: Path, when: str, told: str | None) -> None:
    """After a merge, that is."""
    assert leave(package, "true", when=when, answer=0) == (0, told)


def test_where_the_folders_are_not_to_be_trusted_nothing_in_them_runs(package: Path) -> None:
    """private.sh has ended the shell."""
    assert leave(package, "exit 77", when="always") == (77, None)


def test_the_first_interpreter_that_is_there_is_taken(package: Path) -> None:
    """And where none is, the status stands all the same."""
    assert leave(package, "exit 9", pythons=("/nowhere/python", sys.executable)) == (9, "9 0")
    (package.parent / "told").unlink()
    assert leave(package, "exit 9", pythons=("/nowhere/python",)) == (9, None)


def test_sigterm_does_not_end_the_shell_before_its_step(package: Path) -> None:
    """It waits for what runs, and the aftermath itself is not disturbed either."""
    assert leave(package, "bash -c 'kill -TERM $PPID; sleep 0.2; exit 72'") == (72, "72 0")


def test_what_the_log_held_before_is_told(package: Path) -> None:
    """Slurm appends when it starts a job again."""
    (package.parent / "log").write_text("Out Of Memory, of the last start\n")
    size = (package.parent / "log").stat().st_size
    assert leave(package, "exit 9") == (9, f"9 {size}")
