"""The question above a budget: asked on a terminal, a refusal in a pipe, never without the key."""

from __future__ import annotations

import os
import pty
import subprocess
import time
from pathlib import Path

import pytest

from tests.command_line import REHEARSAL, Hpcq

PROFILE = """
name = "one"
scheduler = "local"
[gpu_classes.small]
gpu = "H100-80"
gpus_per_node = 1
cpus_per_node = 8
memory_gib = 64
"""
BUDGET = "[plan]\nconfirm_above_gpu_hours = 0.00001\n"
TIMEOUT_S = 120


@pytest.fixture
def manifest(hpcq: Hpcq) -> Path:
    """A rehearsal of a second on a class with a GPU, above its budget."""
    hpcq.write(PROFILE, "one.toml")
    text = REHEARSAL.replace('"local"', '"one.toml"').replace(', "synthetic-w4a16"', "").replace("shards = 2", "")
    return hpcq.write(text + "rehearsal = { request_seconds = 0.04 }\n" + BUDGET)


@pytest.mark.parametrize("verb", ["submit", "resume"])
def test_in_a_pipe_it_is_refused_with_the_option_that_says_yes(hpcq: Hpcq, manifest: Path, verb: str) -> None:
    """Exit code 2, the estimate, the bound and --yes; nothing of the run's is written."""
    if verb == "resume":
        assert hpcq("submit", manifest, "--yes", "-O", "evaluate.rehearsal.request_seconds=0").code == 0
        next(hpcq.folder.glob("runs/rehearsal/segments/evaluate.*/*.h5")).unlink()
        next(hpcq.folder.glob("runs/rehearsal/segments/evaluate.*/*.json")).unlink()
    options = ("-O", "evaluate.rehearsal.request_seconds=0.04") if verb == "resume" else ()
    done = hpcq(verb, manifest, *options)
    assert (done.code, done.out) == (2, "")
    assert "GPU-hours on small, more than plan.confirm_above_gpu_hours = 1e-05: add --yes" in done.err
    assert (hpcq.folder / "runs").exists() == (verb == "resume")


def test_yes_and_no_key_ask_nothing(hpcq: Hpcq, manifest: Path) -> None:
    """--yes goes on at once, and so does a manifest without the key."""
    assert hpcq("submit", manifest, "--yes").code == 0
    without = hpcq.write(manifest.read_text().replace(BUDGET, ""), "without.toml")
    assert hpcq("submit", without, "-O", "run.name=other").code == 0


def typed(hpcq: Hpcq, answer: str, *words: str | Path) -> tuple[int, str]:
    """The exit code and what a terminal shows when that is answered to the question."""
    own, its = pty.openpty()
    command = [str(hpcq.python), "-m", "hpcq", *map(str, words)]
    with subprocess.Popen(command, cwd=hpcq.folder, stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        shown, deadline, answered = b"", time.monotonic() + TIMEOUT_S, False
        while time.monotonic() < deadline:
            try:
                read = os.read(own, 65536)
            except OSError:
                break
            shown += read
            if not answered and b"[y/N]" in shown:
                os.write(own, answer.encode() + b"\n")
                answered = True
        code = process.wait(TIMEOUT_S)
    os.close(own)
    return code, shown.decode()


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 2), ("", 2)])
def test_on_a_terminal_it_is_asked(hpcq: Hpcq, manifest: Path, answer: str, code: int) -> None:
    """Yes runs it; no, and a mere return, leave everything as it was."""
    ended, shown = typed(hpcq, answer, "submit", manifest)
    assert ended == code
    assert "GPU-hours on small: go on? [y/N]" in shown
    assert (hpcq.folder / "runs").exists() == (code == 0)
