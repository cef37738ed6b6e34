"""Resume with other shards and another profile: nothing is lost or computed twice, and the result is the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpcq.store import count_rows
from tests.command_line import REHEARSAL, Hpcq
from tests.results_data import read_datasets

LONG = REHEARSAL.replace(', "synthetic-w4a16"', "").replace("limit = 5", "limit = 15").replace("shards = 2", "")
SLOW = LONG + "batch_size = 1\nflush_interval_s = 0.2\nsynthetic = { request_seconds = 0.4 }\n"
"""75 requests of one variant, 0.4 s each: a machine under load needs time to kill the run before it is done."""
REQUESTS = 75

ELSEWHERE = """
name = "elsewhere"
scheduler = "local"
[gpu_classes.another]
cpus_per_node = 2
memory_gib = 8
"""

StartHpcq = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start_hpcq(hpcq: Hpcq) -> Iterator[StartHpcq]:
    """Start commands in the background; kill those that are left at the end."""
    started: list[subprocess.Popen[str]] = []
    (hpcq.folder / "journal").mkdir()

    def start(*arguments: str) -> subprocess.Popen[str]:
        journal = {**os.environ, "HPCQ_SYNTHETIC_JOURNAL": str(hpcq.folder / "journal")}
        command = [str(hpcq.python), "-m", "hpcq", *arguments]
        with (hpcq.folder / "output").open("a") as log:
            process = subprocess.Popen(command, cwd=hpcq.folder, env=journal, stdout=log, stderr=log, text=True)
        started.append(process)
        return process

    yield start
    kill(hpcq.folder)
    for process in started:
        process.wait()


def kill(folder: Path) -> None:
    """Send SIGKILL to all processes whose working directory is `folder`, until there are none."""
    while found := [
        int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cwd") if has_working_directory(path, folder)
    ]:
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def has_working_directory(link: Path, folder: Path) -> bool:
    """Return whether the link in /proc points to `folder`; False if the process has exited."""
    try:
        return link.readlink() == folder
    except OSError:
        return False


def committed(folder: Path) -> int:
    """Return the number of rows in all segments."""
    return sum(map(count_rows, folder.glob("runs/rehearsal/segments/evaluate.*")))


def computed(folder: Path) -> list[str]:
    """Return every answered request, with repetitions."""
    lines = [line for path in folder.glob("journal/*") for line in path.read_text().splitlines()]
    return [line.partition(" ")[2] for line in lines]


def shards_of(hpcq: Hpcq) -> set[str]:
    """Return the shards in the ids of the evaluations that `status` shows."""
    units = hpcq("status", "rehearsal", "--json").document["units"]
    return {unit["id"].rpartition(".")[2] for unit in units if unit["kind"] == "evaluate"}


def test_four_shards_then_seven_then_one_give_the_undisturbed_result(hpcq: Hpcq, start_hpcq: StartHpcq) -> None:
    """Killed twice and resumed with 7 shards and with 1: the same data; only uncommitted requests ran twice."""
    manifest = hpcq.write(SLOW)
    in_flight = []
    resumed = ("resume", "rehearsal", "-O")
    for arguments, rows in (
        (("submit", str(manifest), "-O", "evaluate.shards=4"), 15),
        ((*resumed, "evaluate.shards=7"), 40),
    ):
        process = start_hpcq(*arguments)
        while committed(hpcq.folder) < rows:
            assert process.poll() is None, (hpcq.folder / "output").read_text()
            time.sleep(0.02)
        kill(hpcq.folder)
        process.wait()
        in_flight.append(len(computed(hpcq.folder)) - committed(hpcq.folder) - sum(in_flight))
    assert shards_of(hpcq) == {f"{index}of7" for index in range(7)}
    elsewhere = hpcq.write(ELSEWHERE, "elsewhere.toml")
    quick = ("-O", "evaluate.synthetic.request_seconds=0")
    process = start_hpcq(*resumed, "evaluate.shards=1", "-O", f"cluster.profile={elsewhere}", *quick)
    assert process.wait() == 0, (hpcq.folder / "output").read_text()

    document = hpcq("merge", "rehearsal", "--json").document
    assert (document["found"], document["missing"], document["duplicates"]) == (REQUESTS, 0, 0)
    assert committed(hpcq.folder) == REQUESTS
    assert len(set(computed(hpcq.folder))) == REQUESTS
    assert len(computed(hpcq.folder)) - REQUESTS == sum(in_flight)
    plan = json.loads((hpcq.folder / "runs" / "rehearsal" / "plan.json").read_text())
    assert {unit["gpu_class"] for unit in plan["units"]} == {"another"}

    undisturbed = Hpcq(python=hpcq.python, folder=hpcq.folder / "undisturbed")
    undisturbed.folder.mkdir()
    assert undisturbed("submit", undisturbed.write(LONG)).code == 0
    here, there = (read_datasets(one.folder / "runs" / "rehearsal" / "results.h5") for one in (hpcq, undisturbed))
    assert here == there
    assert len(here) > 10


def test_a_finished_variant_stays_finished_with_other_shards(finished: Hpcq) -> None:
    """A finished run has nothing to resume with any number of shards; the next plain resume keeps the number."""
    for options in (("-O", "evaluate.shards=3"), ()):
        assert finished("resume", "rehearsal", *options).code == 0
        assert shards_of(finished) == {"0of3", "1of3", "2of3"}
    assert len(list(finished.folder.glob("runs/rehearsal/attempts/*.json"))) == 6


def test_lost_responses_are_answered_with_other_shards(finished: Hpcq) -> None:
    """After a merge has found missing responses, the new shards answer only these requests, each once."""
    run = finished.folder / "runs" / "rehearsal"
    lost = next(run.glob("segments/evaluate.*0of2/*.h5"))
    lost.unlink()
    (run / "results.h5").unlink()
    assert finished("merge", "rehearsal").code == 1
    assert finished("resume", "rehearsal", "-O", "evaluate.shards=3").code == 0
    document = finished("merge", "rehearsal", "--json").document
    assert (document["missing"], document["duplicates"]) == (0, 0)
    answered = sum(map(count_rows, run.glob("segments/evaluate.*of3")))
    assert answered == int(lost.stem.rpartition("-")[2])


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (
            "tasks.limit=6",
            (
                "{run}: this run has other settings (tasks.limit was 5 and is 6), so Llama-3.1-8B-Instruct"
                " bf16 and Llama-3.1-8B-Instruct synthetic-w4a16 would be evaluated again on arc_challenge and gsm8k. "
                "Submit another run with these options: `hpcq submit MANIFEST -O run.name=rehearsal-2`."
            ),
        ),
        (
            "run.name=other",
            (
                "runs/rehearsal: the name and the folders of an existing run (run.name, paths) cannot change. "
                "To start another run, use `hpcq submit runs/rehearsal/manifest.lock.toml` with these options."
            ),
        ),
        ("evaluate.shards=many", "-O evaluate.shards=many: evaluate.shards: must be an integer, not 'many'."),
    ],
)
def test_overrides_that_would_make_another_run_are_refused(finished: Hpcq, option: str, sentence: str) -> None:
    """Exit code 2, the reason, and the run stays as it was."""
    lock = finished.folder / "runs" / "rehearsal" / "manifest.lock.toml"
    before = lock.read_bytes()
    done = finished("resume", "rehearsal", "-O", option)
    assert (done.code, done.out) == (2, "")
    assert done.err.strip() == sentence.format(run=lock.parent)
    assert lock.read_bytes() == before
    assert [path.name for path in lock.parent.parent.iterdir() if not path.name.startswith(".")] == ["rehearsal"]
