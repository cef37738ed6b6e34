"""Other users can neither read nor change a run, and no file of a run contains a secret."""

from __future__ import annotations

import secrets
import stat

from tests.command_line import REHEARSAL, Hpcq

STRICT_PROFILE = """
name = "here"
scheduler = "local"
[gpu_classes.cpu]
cpus_per_node = 2
memory_gib = 8
[environments.core]
setup = ['test -n "$HF_TOKEN"']
"""
"""A profile whose jobs fail without a token in their environment."""


def test_a_secret_of_the_submitting_shell_is_not_written(hpcq: Hpcq) -> None:
    """HF_TOKEN reaches the jobs, but no lock, log, record, segment or result contains it."""
    token = secrets.token_hex(16)
    profile = hpcq.write(STRICT_PROFILE, "here.toml")
    manifest = hpcq.write(REHEARSAL)
    done = hpcq("submit", manifest, "-O", f"cluster.profile={profile}", env={"HF_TOKEN": token})
    assert done.code == 0, done.err
    files = [path for path in hpcq.folder.rglob("*") if path.is_file()]
    assert {".jsonl", ".h5", ".json", ".toml", ".log", ".sh"} <= {path.suffix for path in files}
    assert [path for path in files if token.encode() in path.read_bytes()] == []
    assert token not in done.out + done.err


def test_files_of_a_run_are_private(finished: Hpcq) -> None:
    """Other users cannot read the files of a run, its logs or its records, or list their folders."""
    paths = [path for top in ("runs", "logs") for path in (finished.folder / top).rglob("*") if not path.is_symlink()]
    assert len(paths) > 20
    assert [path for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_a_run_that_others_can_write_is_refused(finished: Hpcq) -> None:
    """`submit`, `resume` and `merge` exit with code 2 and the fix, until the mode is changed."""
    run = finished.folder / "runs" / "rehearsal"
    run.chmod(0o770)
    for arguments in (("submit", "manifest.toml"), ("resume", "rehearsal"), ("merge", "rehearsal")):
        done = finished(*arguments)
        assert (done.code, done.out) == (2, "")
        assert done.err.strip() == (
            f"{run}: can be written by other users (mode 770), who could make the jobs run commands as you: "
            f"run `chmod go-w {run}`."
        )
    assert finished("status", "rehearsal").code == 0
    run.chmod(0o750)
    assert finished("resume", "rehearsal").code == 0
