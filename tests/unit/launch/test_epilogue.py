"""The trap of sbatch/epilogue.sh: when it runs the epilogue, by which interpreter, and the shell's exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hpcq.launch.job_script import script

RECORDER = """
import sys, pathlib
pathlib.Path(sys.argv[1], "arguments").write_text(" ".join(sys.argv[2:]))
sys.exit(int(pathlib.Path(sys.argv[1], "exit_code").read_text()))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package hpcq whose epilogue only records its arguments."""
    folder = tmp_path / "package" / "hpcq" / "batch"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "epilogue.py").write_text(RECORDER)
    return tmp_path / "package"


def run_shell(
    package: Path,
    command: str,
    *,
    when: str = "failed",
    exit_code: int = 1,
    pythons: tuple[str, ...] = (sys.executable,),
) -> tuple[int, str | None]:
    """Run `command` in a shell with the trap; return its exit status and the epilogue's arguments, if it ran."""
    folder = package.parent
    (folder / "exit_code").write_text(str(exit_code))
    source = [str(script("epilogue.sh")), when, str(folder), str(package), *pythons]
    text = f"set -euo pipefail; . {' '.join(source)}; {command}"
    with (folder / "log").open("ab") as log:
        done = subprocess.run(["bash", "-c", text], stdout=log, stderr=log, check=False, timeout=60)
    arguments = folder / "arguments"
    return done.returncode, arguments.read_text() if arguments.exists() else None


def test_the_epilogue_gets_the_status_and_does_not_change_it(package: Path) -> None:
    """A failed unit keeps its exit status."""
    assert run_shell(package, "bash -c 'exit 71'") == (71, "71 0")


def test_the_shell_exits_with_0_if_the_unit_is_done(package: Path) -> None:
    """Even if its process was killed by a signal afterwards."""
    assert run_shell(package, "bash -c 'kill -SEGV $$'", exit_code=0) == (0, "139 0")


@pytest.mark.parametrize(("when", "arguments"), [("failed", None), ("always", "0 0")])
def test_after_success_the_epilogue_runs_only_if_requested(package: Path, when: str, arguments: str | None) -> None:
    """It is requested for merges."""
    assert run_shell(package, "true", when=when, exit_code=0) == (0, arguments)


def test_nothing_runs_if_the_folders_are_unsafe(package: Path) -> None:
    """Exit status 77 is that of private.sh."""
    assert run_shell(package, "exit 77", when="always") == (77, None)


def test_the_first_existing_interpreter_is_used(package: Path) -> None:
    """If none exists, the exit status is kept as well."""
    assert run_shell(package, "exit 9", pythons=("/missing/python", sys.executable)) == (9, "9 0")
    (package.parent / "arguments").unlink()
    assert run_shell(package, "exit 9", pythons=("/missing/python",)) == (9, None)


def test_sigterm_does_not_end_the_shell_before_its_step(package: Path) -> None:
    """The shell waits for the running command, and the epilogue is not interrupted either."""
    assert run_shell(package, "bash -c 'kill -TERM $PPID; sleep 0.2; exit 72'") == (72, "72 0")


def test_the_epilogue_gets_the_size_of_the_log_at_the_start(package: Path) -> None:
    """Slurm appends to the log when it restarts a job."""
    (package.parent / "log").write_text("Out Of Memory, from the previous start\n")
    size = (package.parent / "log").stat().st_size
    assert run_shell(package, "exit 9") == (9, f"9 {size}")


@pytest.mark.parametrize(
    ("command", "ended"),
    [
        ("bash -c 'exit 71'", (71, "71 0")),
        ("true", (0, None)),
        ("mkdir /no/such/folder || exit 6", (6, "6 0")),
        ("(exit 3) || exit", (3, "3 0")),
        ("_hpcq_restore_traps; kill -TERM $$; exit 71", (71, "71 0")),
    ],
)
@pytest.mark.parametrize("trap", ["EXIT", "0 TERM"])
def test_an_exit_trap_of_setup_lines_does_not_replace_the_epilogue(
    package: Path, command: str, ended: tuple[int, str | None], trap: str
) -> None:
    """Observed: no requeue and no decision, and a merge submitted no next portion. The site's command runs last."""
    site = package.parent / "site"
    after = "" if "exit" in command and "bash" not in command else "_hpcq_restore_traps; "
    setup = f"_hpcq_save_traps; set +eu; trap 'ls {package.parent} >{site}; exit 5' {trap}; {after}"
    text = f". {script('prologue.sh')}; {setup}set -e; {command}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("HPCQ_PACKAGE_PATH", str(package)), ("HPCQ_THREADS", "1")):
            patch.setenv(name, value)
        assert run_shell(package, text) == ended
    assert ("arguments" in site.read_text()) == (ended[1] is not None)
