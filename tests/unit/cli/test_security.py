"""What others may see and change of a run: nothing of it is written for them, by them, or with a secret in it."""

from __future__ import annotations

import secrets
import stat

from tests.command_line import REHEARSAL, Hpcq

CARRIED = """
name = "here"
scheduler = "local"
[gpu_classes.cpu]
cpus_per_node = 2
memory_gib = 8
[environments.core]
setup = ['test -n "$HF_TOKEN"']
"""
"""A profile whose jobs fail unless they were given a token."""


def test_a_secret_of_the_submitting_shell_is_written_nowhere(hpcq: Hpcq) -> None:
    """HF_TOKEN reaches the jobs and no file of the run: no pickle, lock, log, record, segment or result holds it."""
    token = secrets.token_hex(16)
    profile = hpcq.write(CARRIED, "here.toml")
    manifest = hpcq.write(REHEARSAL)
    done = hpcq("submit", manifest, "-O", f"cluster.profile={profile}", env={"HF_TOKEN": token})
    assert done.code == 0, done.err
    files = [path for path in hpcq.folder.rglob("*") if path.is_file()]
    assert {".pkl", ".h5", ".json", ".toml", ".log", ".sh"} <= {path.suffix for path in files}
    assert [path for path in files if token.encode() in path.read_bytes()] == []
    assert token not in done.out + done.err


def test_what_a_run_writes_is_for_its_users_eyes(rehearsed: Hpcq) -> None:
    """Nobody else can read a file of the run, its logs or its pickles, or enter their folders."""
    paths = [path for top in ("runs", "logs") for path in (rehearsed.folder / top).rglob("*") if not path.is_symlink()]
    assert len(paths) > 20
    assert [path for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_a_run_that_others_can_write_is_not_worked_on(rehearsed: Hpcq) -> None:
    """`submit`, `resume` and `merge` refuse it with exit code 2 and the cure; nothing begins before it is typed."""
    run = rehearsed.folder / "runs" / "rehearsal"
    run.chmod(0o770)
    for words in (("submit", "manifest.toml"), ("resume", "rehearsal"), ("merge", "rehearsal")):
        done = rehearsed(*words)
        assert (done.code, done.out) == (2, "")
        assert done.err.strip() == (
            f"{run}: can be written by others (mode 770), who could have the jobs run anything in your name; "
            f"type `chmod go-w {run}`."
        )
    assert rehearsed("status", "rehearsal").code == 0
    run.chmod(0o750)
    assert rehearsed("resume", "rehearsal").code == 0
