"""Check that no other user can write what a job executes: in Python before a submission, and in a job's shell."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from hpcq.core.errors import UserInputError
from hpcq.core.failures import UNSAFE_PERMISSIONS
from hpcq.core.files import write_text
from hpcq.core.paths import RunLayout
from hpcq.core.permissions import Trust, check_programs, make_private_folders, trust_of
from hpcq.launch.array_spec import Environment
from hpcq.launch.job_script import check_lines, script, write_environment
from hpcq.launch.package_snapshot import Snapshot, make_snapshot

NOBODY = 65534
NOBODY_ELSE = Trust()
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
    write_environment(path, Environment(name="e", python="python"), threads=1, snapshot=make_snapshot(layout))
    return path


@pytest.fixture
def snapshot(layout: RunLayout, environment: Path) -> Snapshot:
    """Return the snapshot that the environment file names."""
    assert str(layout.packages) in environment.read_text()
    return make_snapshot(layout)


def enter(environment: Path, trust: Trust = NOBODY_ELSE) -> subprocess.CompletedProcess[str]:
    """Run a command as the local launcher does."""
    command = ["bash", str(script("enter.sh")), str(environment), "echo", "started"]
    variables = {**os.environ, **trust.variables()}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, env=variables)


def batch(
    environment: Path, snapshot: Snapshot, trust: Trust = NOBODY_ELSE, programs: tuple[Path, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a command as a batch script does."""
    lines = "\n".join([*check_lines(environment, snapshot, programs, trust), f". '{environment}'", "echo started"])
    return subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_a_run_is_private_to_its_user(tmp_path: Path, umask: int) -> None:
    """Folders get mode 0700 and files 0600, with any umask, also if the parent folder has the setgid bit."""
    runs = tmp_path / "runs"
    runs.mkdir()
    runs.chmod(0o3777)  # without the sticky bit, others could replace the run's folder
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
    with pytest.raises(UserInputError, match=rf"\(mode {mode:o}\).*run `chmod go-w {folder}`\.$"):
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


def test_a_shared_run_may_be_read(layout: RunLayout, environment: Path, snapshot: Snapshot) -> None:
    """A run that its user made readable for others continues."""
    for folder in (layout.folder, layout.job_logs, layout.launcher_logs, environment.parent):
        folder.chmod(0o755)
    environment.chmod(0o644)
    make_private_folders(layout)
    assert enter(environment).stdout == batch(environment, snapshot).stdout == "started\n"


@pytest.mark.parametrize("mode", [0o720, 0o702])
@pytest.mark.parametrize(
    "exposed",
    [
        "logs/r",
        "logs/r/submitit",
        "logs/r/submitit/evaluate.0.abc",
        "logs/r/submitit/evaluate.0.abc/environment.sh",
        f"runs/.packages-{os.geteuid()}",
        "package",
    ],
)
def test_a_job_writable_by_others_does_not_start(
    tmp_path: Path, environment: Path, snapshot: Snapshot, exposed: str, mode: int
) -> None:
    """If others can write any part of a job, nothing is executed: one message names it, with a distinct exit code."""
    if exposed == "package":
        exposed = str(snapshot.path.relative_to(tmp_path))
    (tmp_path / exposed).chmod(mode)
    for done in (enter(environment), batch(environment, snapshot)):
        assert (done.returncode, done.stdout) == (UNSAFE_PERMISSIONS, "")
        assert done.stderr == (
            f"hpcq: other users own or can write {tmp_path / exposed}, so nothing in it is executed. "
            "Run 'chmod go-w' on it.\n"
        )


def test_a_replaced_script_is_not_read(environment: Path, snapshot: Snapshot) -> None:
    """The folder is checked before the script in it is read: a script that an intruder left there never runs."""
    environment.write_text("echo intruder\n")
    environment.parent.chmod(0o777)
    for done in (enter(environment), batch(environment, snapshot)):
        assert (done.returncode, done.stdout) == (UNSAFE_PERMISSIONS, "")


def test_a_folder_that_cannot_be_checked_is_rejected(layout: RunLayout, environment: Path) -> None:
    """The job does not start if the folder with its package has disappeared."""
    layout.packages.rename(layout.folder.with_name("elsewhere"))
    done = enter(environment)
    assert (done.returncode, done.stdout) == (UNSAFE_PERMISSIONS, "")
    assert "cannot check" in done.stderr


def test_paths_with_shell_metacharacters_are_checked(tmp_path: Path) -> None:
    """The shell does not interpret spaces, quotes and dollars in a path."""
    folder = tmp_path / "it's $(a) `run`"
    folder.mkdir()
    for mode, code in ((0o700, 0), (0o770, UNSAFE_PERMISSIONS)):
        folder.chmod(mode)
        command = ["bash", "-c", f'. "{script("private.sh")}"; hpcq_require_private "$@"', "bash", str(folder)]
        assert subprocess.run(command, check=False, timeout=30, stderr=subprocess.DEVNULL).returncode == code


@pytest.mark.parametrize("mode", [0o702, 0o2777])
@pytest.mark.parametrize("top", ["runs", "logs", "."])
def test_a_folder_above_that_others_can_write_is_rejected(
    tmp_path: Path, layout: RunLayout, environment: Path, snapshot: Snapshot, top: str, mode: int
) -> None:
    """Observed: another user replaced the folder above `logs/NAME` after its check, and the job ran their code."""
    (tmp_path / top).chmod(mode)
    with pytest.raises(UserInputError, match=rf"^{tmp_path / top}: can be written by .*`chmod go-w {tmp_path / top}`"):
        make_private_folders(layout)
    done = batch(environment, snapshot)
    assert (done.returncode, done.stdout) == (UNSAFE_PERMISSIONS, "")
    assert f"other users own or can write {tmp_path / top}, and so could replace" in done.stderr
    if top != "runs":
        assert enter(environment).returncode == UNSAFE_PERMISSIONS


def test_a_sticky_folder_above_is_accepted(
    tmp_path: Path, layout: RunLayout, environment: Path, snapshot: Snapshot
) -> None:
    """In /tmp, for example, only its owner can replace an entry."""
    (tmp_path / "logs").chmod(0o1777)
    make_private_folders(layout)
    assert enter(environment).stdout == batch(environment, snapshot).stdout == "started\n"


@AS_ROOT
def test_a_folder_of_another_user_above_needs_their_name_in_the_manifest(
    tmp_path: Path, layout: RunLayout, environment: Path, snapshot: Snapshot
) -> None:
    """The owner of a folder can always replace what is in it; paths.trusted_users accepts that."""
    os.chown(tmp_path / "logs", NOBODY, -1)
    with pytest.raises(UserInputError, match=r"logs: belongs to .*add the name to paths\.trusted_users\.$"):
        make_private_folders(layout)
    assert batch(environment, snapshot).returncode == enter(environment).returncode == UNSAFE_PERMISSIONS
    trusting = replace(layout, trusted_users=(pwd.getpwuid(NOBODY).pw_name,))
    make_private_folders(trusting)
    trust = trust_of(trusting)
    assert enter(environment, trust).stdout == batch(environment, snapshot, trust).stdout == "started\n"


@AS_ROOT
def test_a_project_folder_of_a_group_needs_its_name_in_the_manifest(
    tmp_path: Path, layout: RunLayout, environment: Path, snapshot: Snapshot
) -> None:
    """A setgid folder of mode 2770 is common; paths.trusted_groups accepts it, but not if everyone can write."""
    group = grp.getgrnam("daemon")
    os.chown(tmp_path / "logs", -1, group.gr_gid)
    (tmp_path / "logs").chmod(0o2770)
    with pytest.raises(UserInputError, match=r"by the group daemon \(mode 2770\).*paths\.trusted_groups\.$"):
        make_private_folders(layout)
    trusting = replace(layout, trusted_groups=("daemon",))
    make_private_folders(trusting)
    trust = trust_of(trusting)
    assert enter(environment, trust).stdout == batch(environment, snapshot, trust).stdout == "started\n"
    (tmp_path / "logs").chmod(0o2777)
    with pytest.raises(UserInputError, match="by all users"):
        make_private_folders(trusting)
    assert batch(environment, snapshot, trust).returncode == UNSAFE_PERMISSIONS


@pytest.mark.parametrize("key", ["trusted_users", "trusted_groups"])
def test_an_unknown_trusted_account_is_refused(layout: RunLayout, key: str) -> None:
    """The message has the key and the name."""
    with pytest.raises(UserInputError, match=rf"^paths\.{key}: this machine has no .* 'no-such-account'"):
        make_private_folders(replace(layout, **{key: ("no-such-account",)}))


def test_links_to_a_run_are_followed(tmp_path: Path, layout: RunLayout, environment: Path, snapshot: Snapshot) -> None:
    """Both the folder of a link and the folders above its target are checked, over several links."""
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    (open_folder / "second").symlink_to(tmp_path / "logs")
    (tmp_path / "first").symlink_to("open/second")
    through = replace(layout, logs=tmp_path / "first")
    linked = tmp_path / "first" / environment.relative_to(tmp_path / "logs")
    make_private_folders(through)
    assert batch(linked, snapshot).stdout == "started\n"
    open_folder.chmod(0o777)
    with pytest.raises(UserInputError, match=f"^{open_folder}: can be written by all users"):
        make_private_folders(through)
    assert batch(linked, snapshot).returncode == UNSAFE_PERMISSIONS


def test_an_interpreter_in_the_cache_is_checked(tmp_path: Path, environment: Path, snapshot: Snapshot) -> None:
    """Others who can write above an interpreter in HPCQ_CACHE could run their program as the user."""
    python = tmp_path / "cache" / "environments" / "core" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/usr/bin/env")
    check_programs([python], NOBODY_ELSE)
    assert batch(environment, snapshot, programs=(python,)).stdout == "started\n"
    (tmp_path / "cache" / "environments").chmod(0o777)
    with pytest.raises(UserInputError, match=r"cache/environments: can be written by all users"):
        check_programs([python], NOBODY_ELSE)
    assert batch(environment, snapshot, programs=(python,)).returncode == UNSAFE_PERMISSIONS


@AS_ROOT
def test_another_user_can_swap_the_folder_above_and_the_job_runs_nothing(
    tmp_path: Path, layout: RunLayout, environment: Path, snapshot: Snapshot
) -> None:
    """The attack itself, by a second user: their copy of the run has the modes and names of the original."""
    (tmp_path / "logs").chmod(0o777)
    tmp_path.chmod(0o777)
    attack = (
        f"cd '{tmp_path}' && mv logs old && mkdir -p '{environment.parent}' && "
        f"echo 'echo stolen' > '{environment}' && chmod -R go-w logs"
    )
    with pytest.raises(UserInputError):
        make_private_folders(layout)
    # The capability lets the second user pass pytest's own folders, which are private; they can write to none of them.
    passes = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    command = ["setpriv", f"--reuid={NOBODY}", "--clear-groups", *passes, "bash", "-c", attack]
    assert subprocess.run(command, check=False, timeout=30).returncode == 0
    done = batch(environment, snapshot)
    assert (done.returncode, done.stdout) == (UNSAFE_PERMISSIONS, "")
