"""Confirmation above a budget: a question on a terminal, an error in a pipe, nothing without the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import REHEARSAL, Hpcq
from tests.terminal import run_on_terminal

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


@pytest.fixture
def manifest(hpcq: Hpcq) -> Path:
    """A run of one second on a class with a GPU, above its budget."""
    hpcq.write(PROFILE, "one.toml")
    text = REHEARSAL.replace('"local"', '"one.toml"').replace(', "synthetic-w4a16"', "").replace("shards = 2", "")
    return hpcq.write(text + "synthetic = { request_seconds = 0.04 }\n" + BUDGET)


@pytest.mark.parametrize("verb", ["submit", "resume"])
def test_in_a_pipe_it_is_refused_with_the_option_that_confirms(hpcq: Hpcq, manifest: Path, verb: str) -> None:
    """Exit code 2, the estimate, the limit and --yes; nothing is written to the run."""
    if verb == "resume":
        assert hpcq("submit", manifest, "--yes", "-O", "evaluate.synthetic.request_seconds=0").code == 0
        next(hpcq.folder.glob("runs/rehearsal/segments/evaluate.*/*.h5")).unlink()
        next(hpcq.folder.glob("runs/rehearsal/segments/evaluate.*/*.json")).unlink()
    options = ("-O", "evaluate.synthetic.request_seconds=0.04") if verb == "resume" else ()
    done = hpcq(verb, manifest, *options)
    assert (done.code, done.out) == (2, "")
    assert "GPU-hours on small, more than plan.confirm_above_gpu_hours = 1e-05: add --yes" in done.err
    assert (hpcq.folder / "runs").exists() == (verb == "resume")


def test_no_confirmation_with_the_option_or_without_the_key(hpcq: Hpcq, manifest: Path) -> None:
    """With --yes or without the key in the manifest, the units are submitted immediately."""
    assert hpcq("submit", manifest, "--yes").code == 0
    without = hpcq.write(manifest.read_text().replace(BUDGET, ""), "without.toml")
    assert hpcq("submit", without, "-O", "run.name=other").code == 0


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 2), ("", 2)])
def test_on_a_terminal_it_is_asked(hpcq: Hpcq, manifest: Path, answer: str, code: int) -> None:
    """'y' runs it; 'n' and an empty line change nothing."""
    command = [hpcq.python, "-m", "hpcq", "submit", manifest]
    streams = ["stdin", "stdout", "stderr"]
    exit_code, output = run_on_terminal(command, streams, cwd=hpcq.folder, answers={"[y/N]": answer})
    assert exit_code == code
    assert "GPU-hours on small: submit? [y/N]" in output
    assert (hpcq.folder / "runs").exists() == (code == 0)
