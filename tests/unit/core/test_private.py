"""Who may write what a job executes: one judgement in Python, before anything is handed over, and in a job's shell."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from hpcq.core.errors import UserInputError
from hpcq.core.failures import EXPOSED
from hpcq.core.paths import RunLayout
from hpcq.core.permissions import private
from hpcq.launch.array_spec import Environment
from hpcq.launch.job_script import entering, package_path, script, write_environment

NOBODY = 65534
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="root alone can give a folder away")


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """A run that has been begun."""
    made = RunLayout(name="r", runs=tmp_path / "runs", checkpoints=tmp_path / "checkpoints", logs=tmp_path / "logs")
    with private(made):
        pass
    return made


@pytest.fixture
def environment(layout: RunLayout) -> Path:
    """What a launcher writes for a submission of that run."""
    folder = layout.launcher_logs / "evaluate.0.abc"
    folder.mkdir(mode=0o700)
    path = folder / "environment.sh"
    with private(layout):
        write_environment(
            path, Environment(name="e", python="python"), threads=1, package_path=package_path(layout.folder)
        )
    return path


def enter(environment: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as the local launcher does."""
    command = ["bash", str(script("enter.sh")), str(environment), "echo", "begun"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def batch(environment: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a batch script does."""
    lines = "\n".join([*entering(environment), "echo begun"])
    return subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_what_a_run_makes_is_its_users_alone(tmp_path: Path, umask: int) -> None:
    """Folders get 0700 and files 0600, whatever the umask, also where folders above hand their group down."""
    runs = tmp_path / "runs"
    runs.mkdir()
    runs.chmod(0o2777)
    layout = RunLayout(name="r", runs=runs, checkpoints=tmp_path / "checkpoints", logs=tmp_path / "logs")
    before = os.umask(umask)
    try:
        with private(layout):
            (layout.folder / "file").touch()
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    modes = [path.stat().st_mode for path in (layout.folder, layout.job_logs, layout.launcher_logs)]
    assert [stat.S_IMODE(mode) & 0o777 for mode in modes] == [0o700] * 3
    assert stat.S_IMODE((layout.folder / "file").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
@pytest.mark.parametrize("part", ["folder", "job_logs", "launcher_logs"])
def test_a_folder_that_others_can_write_is_refused_with_the_cure(layout: RunLayout, part: str, mode: int) -> None:
    """The sentence names the folder, its mode and the chmod; typed, the chmod cures it."""
    folder: Path = getattr(layout, part)
    folder.chmod(mode)
    with pytest.raises(UserInputError, match=rf"\(mode {mode:o}\).*type `chmod go-w {folder}`\.$"), private(layout):
        pass
    subprocess.run(["chmod", "go-w", folder], check=True)
    with private(layout):
        pass


@AS_ROOT
def test_another_users_folder_is_refused(layout: RunLayout, environment: Path) -> None:
    """Whoever owns a folder can put anything there, whatever its mode."""
    os.chown(layout.job_logs, NOBODY, -1)
    with pytest.raises(UserInputError, match="belongs to"), private(layout):
        pass
    assert enter(environment).returncode == EXPOSED


def test_a_shared_run_may_be_read(layout: RunLayout, environment: Path) -> None:
    """A run that its user has opened for reading goes on."""
    for folder in (layout.folder, layout.job_logs, layout.launcher_logs, environment.parent):
        folder.chmod(0o755)
    environment.chmod(0o644)
    with private(layout):
        pass
    assert enter(environment).stdout == batch(environment).stdout == "begun\n"


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
def test_a_job_that_others_can_change_does_not_begin(
    tmp_path: Path, environment: Path, exposed: str, mode: int
) -> None:
    """Whatever of a job others can write, nothing is executed: one sentence names it, and the exit code is its own."""
    (tmp_path / exposed).chmod(mode)
    for done in (enter(environment), batch(environment)):
        assert (done.returncode, done.stdout) == (EXPOSED, "")
        assert done.stderr == (
            f"hpcq: others own or can write {tmp_path / exposed}, so nothing in it is executed; "
            "type 'chmod go-w' and its path.\n"
        )


def test_a_script_that_was_put_in_place_of_ours_is_not_read(environment: Path) -> None:
    """The folder is judged before the script in it is: what an intruder left there never runs."""
    environment.write_text("echo intruder\n")
    environment.parent.chmod(0o777)
    for done in (enter(environment), batch(environment)):
        assert (done.returncode, done.stdout) == (EXPOSED, "")


def test_what_cannot_be_judged_is_refused(layout: RunLayout, environment: Path) -> None:
    """A run's folder that has vanished is no reason to begin."""
    layout.folder.rename(layout.folder.with_name("elsewhere"))
    done = enter(environment)
    assert (done.returncode, done.stdout) == (EXPOSED, "")
    assert "cannot tell" in done.stderr


def test_folders_with_odd_names_are_judged_like_others(tmp_path: Path) -> None:
    """Blanks, quotes and dollars in a path mean nothing to the shell."""
    folder = tmp_path / "it's $(a) `run`"
    folder.mkdir()
    for mode, code in ((0o700, 0), (0o770, EXPOSED)):
        folder.chmod(mode)
        command = ["bash", "-c", f'. "{script("private.sh")}" "$@"', "bash", str(folder)]
        assert subprocess.run(command, check=False, timeout=30, stderr=subprocess.DEVNULL).returncode == code
