"""Check that no other user can write what a job executes: in Python before a submission, and in a job's shell."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from hpcq.core.errors import UserInputError
from hpcq.core.failures import UNSAFE_PERMISSIONS
from hpcq.core.files import write_text
from hpcq.core.paths import RunLayout
from hpcq.core.permissions import make_private_folders
from hpcq.launch.array_spec import Environment
from hpcq.launch.job_script import package_path, script, source_lines, write_environment

NOBODY = 65534
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the owner of a folder")


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """Return the paths of a run whose folders exist."""
    made = RunLayout(name="r", runs=tmp_path / "runs", checkpoints=tmp_path / "checkpoints", logs=tmp_path / "logs")
    make_private_folders(made)
    return made


@pytest.fixture
def environment(layout: RunLayout) -> Path:
    """Return the environment file that a launcher writes for a submission of that run."""
    folder = layout.launcher_logs / "evaluate.0.abc"
    folder.mkdir(mode=0o700)
    path = folder / "environment.sh"
    make_private_folders(layout)
    write_environment(path, Environment(name="e", python="python"), threads=1, package_path=package_path(layout.folder))
    return path


def enter(environment: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as the local launcher does."""
    command = ["bash", str(script("enter.sh")), str(environment), "echo", "started"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def batch(environment: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a batch script does."""
    lines = "\n".join([*source_lines(environment), "echo started"])
    return subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_a_run_is_private_to_its_user(tmp_path: Path, umask: int) -> None:
    """Folders get mode 0700 and files 0600, with any umask, also if the parent folder has the setgid bit."""
    runs = tmp_path / "runs"
    runs.mkdir()
    runs.chmod(0o2777)
    layout = RunLayout(name="r", runs=runs, checkpoints=tmp_path / "checkpoints", logs=tmp_path / "logs")
    before = os.umask(umask)
    try:
        make_private_folders(layout)
        write_text(layout.folder / "file", "text")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    modes = [path.stat().st_mode for path in (layout.folder, layout.job_logs, layout.launcher_logs)]
    assert [stat.S_IMODE(mode) & 0o777 for mode in modes] == [0o700] * 3
    assert stat.S_IMODE((layout.folder / "file").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
@pytest.mark.parametrize("part", ["folder", "job_logs", "launcher_logs"])
def test_a_folder_writable_by_others_is_rejected_with_the_fix(layout: RunLayout, part: str, mode: int) -> None:
    """The message has the folder, its mode and a chmod command that fixes it."""
    folder: Path = getattr(layout, part)
    folder.chmod(mode)
    with pytest.raises(UserInputError, match=rf"\(mode {mode:o}\).*type `chmod go-w {folder}`\.$"):
        make_private_folders(layout)
    subprocess.run(["chmod", "go-w", folder], check=True)
    make_private_folders(layout)


@AS_ROOT
def test_a_folder_of_another_user_is_rejected(layout: RunLayout, environment: Path) -> None:
    """The owner of a folder can write to it, independent of its mode."""
    os.chown(layout.job_logs, NOBODY, -1)
    with pytest.raises(UserInputError, match="belongs to"):
        make_private_folders(layout)
    assert enter(environment).returncode == UNSAFE_PERMISSIONS


def test_a_shared_run_may_be_read(layout: RunLayout, environment: Path) -> None:
    """A run that its user made readable for others continues."""
    for folder in (layout.folder, layout.job_logs, layout.launcher_logs, environment.parent):
        folder.chmod(0o755)
    environment.chmod(0o644)
    make_private_folders(layout)
    assert enter(environment).stdout == batch(environment).stdout == "started\n"


@pytest.mark.parametrize("mode", [0o720, 0o702])
@pytest.mark.parametrize(
    "exposed",
    [
        "logs/r",
        "logs/r/submitit",
        "logs/r/submitit/evaluate.0.abc",
        "logs/r/submitit/evaluate.0.abc/environment.sh",
        "runs/r",
        "runs/r/package",
    ],
)
def test_a_job_writable_by_others_does_not_start(tmp_path: Path, environment: Path, exposed: str, mode: int) -> None:
    """If others can write any part of a job, nothing is executed: one message names it, with a distinct exit code."""
    (tmp_path / exposed).chmod(mode)
    for done in (enter(environment), batch(environment)):
        assert (done.returncode, done.stdout) == (UNSAFE_PERMISSIONS, "")
        assert done.stderr == (
            f"hpcq: other users own or can write {tmp_path / exposed}, so nothing in it is executed. "
            "Run 'chmod go-w' on it.\n"
        )


def test_a_replaced_script_is_not_read(environment: Path) -> None:
    """The folder is checked before the script in it is read: a script that an intruder left there never runs."""
    environment.write_text("echo intruder\n")
    environment.parent.chmod(0o777)
    for done in (enter(environment), batch(environment)):
        assert (done.returncode, done.stdout) == (UNSAFE_PERMISSIONS, "")


def test_a_folder_that_cannot_be_checked_is_rejected(layout: RunLayout, environment: Path) -> None:
    """The job does not start if the run's folder has disappeared."""
    layout.folder.rename(layout.folder.with_name("elsewhere"))
    done = enter(environment)
    assert (done.returncode, done.stdout) == (UNSAFE_PERMISSIONS, "")
    assert "cannot check" in done.stderr


def test_paths_with_shell_metacharacters_are_checked(tmp_path: Path) -> None:
    """The shell does not interpret spaces, quotes and dollars in a path."""
    folder = tmp_path / "it's $(a) `run`"
    folder.mkdir()
    for mode, code in ((0o700, 0), (0o770, UNSAFE_PERMISSIONS)):
        folder.chmod(mode)
        command = ["bash", "-c", f'. "{script("private.sh")}" "$@"', "bash", str(folder)]
        assert subprocess.run(command, check=False, timeout=30, stderr=subprocess.DEVNULL).returncode == code
