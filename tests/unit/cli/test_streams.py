"""Standard streams that are closed, full or ASCII-only, signals, and `status --watch`."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import REHEARSAL, Hpcq
from tests.terminal import run_on_terminal

ROOT = Path(__file__).resolve().parents[3]
SMALL = REHEARSAL.replace(', "synthetic-w4a16"', "").replace(', "gsm8k"', "").replace("shards = 2", "")
"""One evaluation of 20 requests, and the merge."""
SLOW = SMALL + "batch_size = 1\nflush_interval_s = 0.5\nsynthetic = { request_seconds = 1.0 }\n"
QUICKER = "evaluate.synthetic.request_seconds=0.1"


def in_shell(hpcq: Hpcq, suffix: str, prefix: str = "") -> Hpcq:
    """Run commands in a shell between `prefix` and `suffix`; the exit code is that of the command."""
    return dataclasses.replace(hpcq, wrapper=("bash", "-c", f'{prefix} "$@" {suffix}; exit ${{PIPESTATUS[0]}}', "bash"))


def outcomes(folder: Path) -> dict[str, str]:
    """Return the outcome of each attempt by kind of unit."""
    files = folder.glob("runs/rehearsal/attempts/*.json")
    return {path.name.partition(".")[0]: json.loads(path.read_text())["outcome"] for path in files}


@pytest.fixture(autouse=True)
def _buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffer standard output in a pipe, as for most users."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


@pytest.mark.parametrize("suffix", ["2>&1 | true", "2>/dev/full", ">&- 2>&- <&-"])
def test_a_run_completes_without_a_reader_of_its_output(hpcq: Hpcq, suffix: str) -> None:
    """With a closed pipe, a full disk or closed streams, only the progress lines are lost."""
    done = in_shell(hpcq, suffix)("submit", hpcq.write(SLOW), "-O", QUICKER)
    assert (done.code, outcomes(hpcq.folder)) == (0, {"evaluate": "done", "merge": "done"})


def test_a_full_disk_for_the_output_of_a_run_is_reported_when_the_run_has_ended(hpcq: Hpcq) -> None:
    """`submit > /dev/full` completes the run; then it exits with 3 and one line on standard error."""
    done = in_shell(hpcq, ">/dev/full")("submit", hpcq.write(SLOW), "-O", QUICKER)
    assert (done.code, outcomes(hpcq.folder)) == (3, {"evaluate": "done", "merge": "done"})
    assert "the disk is full" in done.err.splitlines()[-1]


PRINTS_THEN_WAITS = """
import sys
from hpcq.cli import process_setup
from hpcq.cli.steady_output import steady_output
process_setup.set_up()
with steady_output():
    print("job 7")
    sys.stdin.readline()
    print("after the reader has left")
    print("the work is done", file=sys.stderr)
process_setup.flush_stdout()
"""


def test_a_verb_that_changes_a_run_prints_each_line_at_once(hpcq: Hpcq) -> None:
    """A reader gets the line while the command is at work; if the reader leaves then, the work goes on."""
    command = [str(hpcq.python), "-c", PRINTS_THEN_WAITS]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "job 7\n"
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stderr.read() == "the work is done\n"
    assert process.returncode == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_does_not_hide_a_failure(finished: Hpcq, unbuffered: str) -> None:
    """`merge … | true` with a missing segment exits with 1, whether the pipe closes before or after printing."""
    next(finished.folder.glob("runs/rehearsal/segments/evaluate.*/*.h5")).unlink()
    done = in_shell(finished, "| true")("merge", "rehearsal", env={"PYTHONUNBUFFERED": unbuffered})
    assert (done.code, done.err) == (1, "")


@pytest.mark.parametrize(
    ("command", "suffix", "code"),
    [
        ("--help", "| true", 0),
        ("logs rehearsal --follow", "| true", 0),
        ("status rehearsal", ">&-", 0),
        ("status rehersal", "2>&-", 2),
    ],
)
def test_verbs_exit_normally_without_a_reader(finished: Hpcq, command: str, suffix: str, code: int) -> None:
    """The exit code is the same and no error is printed; `logs --follow` exits with its reader."""
    done = in_shell(finished, suffix)(*command.split())
    assert (done.code, done.out, done.err) == (code, "", "")


def test_a_full_disk_for_the_output_is_reported(finished: Hpcq) -> None:
    """`status > /dev/full` exits with 3 and one line on standard error."""
    done = in_shell(finished, ">/dev/full")("status", "rehearsal")
    assert (done.code, len(done.err.splitlines())) == (3, 1)
    assert "the disk is full" in done.err


def test_characters_outside_the_encoding_are_replaced(finished: Hpcq) -> None:
    """A micro sign in a log is printed as a question mark to an ASCII stream."""
    (log,) = finished.folder.glob("logs/rehearsal/merge.*.log")
    log.write_text("took 5 µs\n", encoding="utf-8")
    done = finished("logs", "rehearsal", "merge", env={"PYTHONIOENCODING": "ascii"})
    assert (done.code, done.out.splitlines()[-1]) == (0, "took 5 ?s")


def test_a_dumb_terminal_gets_plain_lines(hpcq: Hpcq) -> None:
    """With TERM=dumb, state changes are printed line by line, without escape sequences."""
    command = [hpcq.python, "-m", "hpcq", "submit", hpcq.write(SMALL)]
    code, output = run_on_terminal(command, ["stderr"], cwd=hpcq.folder, env={**os.environ, "TERM": "dumb"})
    assert code == 0
    assert ": done" in output
    assert "\x1b" not in output


@pytest.fixture
def slow(hpcq: Hpcq) -> Iterator[Hpcq]:
    """A folder whose manifest takes 20 seconds."""
    hpcq.write(SLOW)
    yield hpcq
    hpcq("cancel", "rehearsal")


def start_submit(hpcq: Hpcq, trap: str, *options: str) -> subprocess.Popen[str]:
    """Start `submit` from a shell that first runs `trap`, and return when the evaluation has committed a response."""
    submit = [str(hpcq.python), "-m", "hpcq", "submit", "manifest.toml", *options]
    command = ["bash", "-c", f'{trap} exec "$@"', "bash", *submit]
    process = subprocess.Popen(command, cwd=hpcq.folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not list(hpcq.folder.glob("runs/rehearsal/segments/*/*.h5")) and process.poll() is None:
        time.sleep(0.1)
    return process


def test_sigint_stops_a_background_command_of_a_script(slow: Hpcq) -> None:
    """SIGINT stops the command even if it was ignored at its start: one message, exit code 130."""
    process = start_submit(slow, "trap '' INT;")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, outcomes(slow.folder)) == (130, {"evaluate": "interrupted"})
    assert err.splitlines()[-1].startswith("Interrupted. Complete results and files are kept")
    assert "Traceback" not in err


def test_nohup_is_respected(slow: Hpcq) -> None:
    """SIGHUP stays ignored if it was ignored at the start of the command."""
    process = start_submit(slow, "trap '' HUP;", "-O", QUICKER)
    process.send_signal(signal.SIGHUP)
    process.communicate()
    assert (process.returncode, outcomes(slow.folder)) == (0, {"evaluate": "done", "merge": "done"})


def test_files_of_a_run_are_private_with_any_umask(hpcq: Hpcq) -> None:
    """With umask 000, other users still cannot read the files of the run, its logs and its records."""
    assert in_shell(hpcq, "", "umask 000;")("submit", hpcq.write(SMALL)).code == 0
    written = [path for folder in ("runs", "logs") for path in (hpcq.folder / folder).rglob("*")]
    assert [path for path in written if path.stat().st_mode & 0o077 and not path.is_symlink()] == []
    assert any(path.suffix == ".jsonl" for path in written)


def test_watching_continues_while_the_run_is_locked(finished: Hpcq) -> None:
    """`status --watch` repeats while a command works on the run; with --json it prints one document at the end."""
    command = [str(finished.python), "-m", "hpcq", "status", "rehearsal", "--watch"]
    with (finished.folder / "runs" / "rehearsal" / ".lock").open("a") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        watching, plain = (
            subprocess.Popen([*command, *options], cwd=finished.folder, stdout=subprocess.PIPE, text=True)
            for options in (["--json"], [])
        )
        first = plain.stdout.readline() if plain.stdout else ""
        assert (plain.poll(), watching.poll()) == (None, None)
    document, _ = watching.communicate()
    assert json.loads(document)["state"] == "done"
    assert first in plain.communicate()[0]
    assert (watching.returncode, plain.returncode) == (0, 0)


def test_status_of_an_incomplete_run_is_an_error_unless_it_is_locked(finished: Hpcq) -> None:
    """Without merged results the exit code is 1, but 0 while a command works on the run."""
    run = finished.folder / "runs" / "rehearsal"
    (run / "results.h5").unlink()
    assert finished("status", "rehearsal").code == 1
    with (run / ".lock").open("a") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        assert finished("status", "rehearsal").code == 0


def on_terminal(hpcq: Hpcq, columns: int, *arguments: str) -> str:
    """Return what a command prints on a terminal with this many columns."""
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    command = [hpcq.python, "-m", "hpcq", *arguments]
    code, output = run_on_terminal(command, ["stdout"], cwd=hpcq.folder, env=environment, columns=columns)
    assert code == 0
    return output


def test_only_a_terminal_folds_tables(hpcq: Hpcq) -> None:
    """`plan` fits a terminal of 108 columns; in a pipe each array is one line; the words are the same, uncoloured."""
    manifest = str(ROOT / "manifests" / "paper.toml")
    shown, piped = on_terminal(hpcq, 108, "plan", manifest), hpcq("plan", manifest).out
    arrays_shown, arrays_piped = (
        text.partition("\n\n")[2].partition("\n\n")[0] for text in (shown.replace("\r", ""), piped)
    )
    assert max(map(len, arrays_shown.splitlines())) <= 108 < max(map(len, arrays_piped.splitlines()))
    assert sorted(arrays_shown.split()) == sorted(arrays_piped.split())
    assert "\x1b" not in shown
