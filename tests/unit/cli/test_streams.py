"""Standard streams that are closed, full, narrow or left by their reader, signals, and a run that is watched."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import REHEARSAL, Hpcq

SMALL = REHEARSAL.replace(', "synthetic-w4a16"', "").replace(', "gsm8k"', "").replace("shards = 2", "")
"""One evaluation of 20 requests, and the merge."""
SLOW = SMALL + "batch_size = 1\nflush_interval_s = 0.5\nrehearsal = { request_seconds = 1.0 }\n"
QUICKER = "evaluate.rehearsal.request_seconds=0.1"


def in_shell(hpcq: Hpcq, end: str, begin: str = "") -> Hpcq:
    """The same, typed in a shell with `end` behind the command; the exit code is the command's, not its reader's."""
    return dataclasses.replace(hpcq, before=("bash", "-c", f'{begin} "$@" {end}; exit ${{PIPESTATUS[0]}}', "bash"))


def outcomes(folder: Path) -> dict[str, str]:
    """How each attempt ended, by its file."""
    files = folder.glob("runs/rehearsal/attempts/*.json")
    return {path.name.partition(".")[0]: json.loads(path.read_text())["outcome"] for path in files}


@pytest.fixture(autouse=True)
def _buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output in a pipe is buffered, as it is for most users."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


@pytest.mark.parametrize("end", ["2>&1 | true", "2>/dev/full", ">&- 2>&- <&-"])
def test_a_run_goes_on_when_nobody_listens(hpcq: Hpcq, end: str) -> None:
    """A reader that left, a full disk and closed streams cost the progress lines and nothing else."""
    done = in_shell(hpcq, end)("submit", hpcq.write(SLOW), "-O", QUICKER)
    assert (done.code, outcomes(hpcq.folder)) == (0, {"evaluate": "done", "merge": "done"})


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_verb_that_fails_says_so_though_its_reader_left(rehearsed: Hpcq, unbuffered: str) -> None:
    """`merge … | true` with a segment missing exits 1, whether the pipe breaks while it prints or afterwards."""
    next(rehearsed.folder.glob("runs/rehearsal/segments/evaluate.*/*.h5")).unlink()
    done = in_shell(rehearsed, "| true")("merge", "rehearsal", env={"PYTHONUNBUFFERED": unbuffered})
    assert (done.code, done.err) == (1, "")


@pytest.mark.parametrize(
    ("command", "end", "code"),
    [
        ("--help", "| true", 0),
        ("logs rehearsal --follow", "| true", 0),
        ("status rehearsal", ">&-", 0),
        ("status rehersal", "2>&-", 2),
    ],
)
def test_verbs_that_print_end_as_ever_without_a_listener(rehearsed: Hpcq, command: str, end: str, code: int) -> None:
    """The exit code is the same and nothing complains, not Python either; `logs --follow` ends with its reader."""
    done = in_shell(rehearsed, end)(*command.split())
    assert (done.code, done.out, done.err) == (code, "", "")


def test_a_disk_too_full_for_the_output_is_one_sentence(rehearsed: Hpcq) -> None:
    """`status > /dev/full` exits 3 with the cause alone on standard error."""
    done = in_shell(rehearsed, ">/dev/full")("status", "rehearsal")
    assert (done.code, len(done.err.splitlines())) == (3, 1)
    assert "the disk is full" in done.err


def test_letters_that_a_stream_cannot_carry_are_replaced(rehearsed: Hpcq) -> None:
    """A log with a micro sign is printed to an ASCII stream with a question mark in its place."""
    (log,) = rehearsed.folder.glob("logs/rehearsal/merge.*.log")
    log.write_text("took 5 µs\n", encoding="utf-8")
    done = rehearsed("logs", "rehearsal", "merge", env={"PYTHONIOENCODING": "ascii"})
    assert (done.code, done.out.splitlines()[-1]) == (0, "took 5 ?s")


def test_a_dumb_terminal_gets_plain_lines(hpcq: Hpcq) -> None:
    """With TERM=dumb no line is redrawn: units are told one by one, without escape sequences."""
    master, slave = pty.openpty()
    command = [str(hpcq.python), "-m", "hpcq", "submit", str(hpcq.write(SMALL))]
    environment = {**os.environ, "TERM": "dumb"}
    subprocess.run(command, cwd=hpcq.folder, env=environment, stdout=subprocess.DEVNULL, stderr=slave, check=True)
    os.close(slave)
    told = os.read(master, 10_000).decode()
    os.close(master)
    assert ": done" in told
    assert "\x1b" not in told


@pytest.fixture
def slow(hpcq: Hpcq) -> Iterator[Hpcq]:
    """A folder whose manifest takes twenty seconds."""
    hpcq.write(SLOW)
    yield hpcq
    hpcq("cancel", "rehearsal")


def started(hpcq: Hpcq, trap: str, *more: str) -> subprocess.Popen[str]:
    """`submit`, started by a shell that ignores what `trap` names, when its evaluation has begun."""
    typed = [str(hpcq.python), "-m", "hpcq", "submit", "manifest.toml", *more]
    words = ["bash", "-c", f'{trap} exec "$@"', "bash", *typed]
    process = subprocess.Popen(words, cwd=hpcq.folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 30
    while not outcomes(hpcq.folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    return process


def test_control_c_is_heard_in_the_background_of_a_script(slow: Hpcq) -> None:
    """SIGINT that was ignored when the command began stops it all the same, in order: one sentence, exit code 130."""
    process = started(slow, "trap '' INT;")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, outcomes(slow.folder)) == (130, {"evaluate": "interrupted"})
    assert err.splitlines()[-1].startswith("Interrupted. What was committed is kept")
    assert "Traceback" not in err


def test_nohup_keeps_its_word(slow: Hpcq) -> None:
    """A hang-up that was ignored when the command began stays ignored."""
    process = started(slow, "trap '' HUP;", "-O", QUICKER)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=40)
    assert (process.returncode, outcomes(slow.folder)) == (0, {"evaluate": "done", "merge": "done"})


def test_what_a_run_writes_is_its_users_alone(hpcq: Hpcq) -> None:
    """Whatever the umask, no file of the run, its logs or its pickles can be read by others."""
    assert in_shell(hpcq, "", "umask 000;")("submit", hpcq.write(SMALL)).code == 0
    written = [path for folder in ("runs", "logs") for path in (hpcq.folder / folder).rglob("*")]
    assert [path for path in written if path.stat().st_mode & 0o077 and not path.is_symlink()] == []
    assert any(path.suffix == ".pkl" for path in written)


def test_watching_lasts_while_somebody_works_on_the_run(rehearsed: Hpcq) -> None:
    """`status --watch` looks again while the run is held; with --json it prints one document, at the end."""
    command = [str(rehearsed.python), "-m", "hpcq", "status", "rehearsal", "--watch"]
    with (rehearsed.folder / "runs" / "rehearsal" / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        watching, plain = (
            subprocess.Popen([*command, *more], cwd=rehearsed.folder, stdout=subprocess.PIPE, text=True)
            for more in (["--json"], [])
        )
        first = plain.stdout.readline() if plain.stdout else ""
        assert (plain.poll(), watching.poll()) == (None, None)
    document, _ = watching.communicate(timeout=30)
    assert json.loads(document)["state"] == "done"
    assert first in plain.communicate(timeout=30)[0]
    assert (watching.returncode, plain.returncode) == (0, 0)


def test_status_fails_where_something_is_missing_and_nobody_works_on_it(rehearsed: Hpcq) -> None:
    """Without merged results the exit code is 1, and 0 while a command holds the run."""
    run = rehearsed.folder / "runs" / "rehearsal"
    (run / "results.h5").unlink()
    assert rehearsed("status", "rehearsal").code == 1
    with (run / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert rehearsed("status", "rehearsal").code == 0
