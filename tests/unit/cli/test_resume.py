"""Resuming on other shards and elsewhere: nothing is lost, nothing is computed twice, and the result is the same."""

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
from tests.results_data import data_of

LONG = REHEARSAL.replace(', "synthetic-w4a16"', "").replace("limit = 5", "limit = 15").replace("shards = 2", "")
SLOW = LONG + "batch_size = 1\nflush_interval_s = 0.2\nrehearsal = { request_seconds = 0.05 }\n"
"""75 requests of one variant, a twentieth of a second each."""
REQUESTS = 75

ELSEWHERE = """
name = "elsewhere"
scheduler = "local"
[gpu_classes.another]
cpus_per_node = 2
memory_gib = 8
"""

Begin = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def begin(hpcq: Hpcq) -> Iterator[Begin]:
    """Starts a command in the background; what is left of it in the end is killed."""
    started: list[subprocess.Popen[str]] = []
    (hpcq.folder / "journal").mkdir()

    def start(*words: str) -> subprocess.Popen[str]:
        journal = {**os.environ, "HPCQ_SYNTHETIC_JOURNAL": str(hpcq.folder / "journal")}
        command = [str(hpcq.python), "-m", "hpcq", *words]
        with (hpcq.folder / "output").open("a") as log:
            process = subprocess.Popen(command, cwd=hpcq.folder, env=journal, stdout=log, stderr=log, text=True)
        started.append(process)
        return process

    yield start
    kill(hpcq.folder)
    for process in started:
        process.wait()


def kill(folder: Path) -> None:
    """SIGKILL everything that works in `folder`, also what is just being started."""
    while found := [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cwd") if works_in(path, folder)]:
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def works_in(working_directory: Path, folder: Path) -> bool:
    """Whether that link of /proc leads to `folder`; those of processes that are gone lead nowhere."""
    try:
        return working_directory.readlink() == folder
    except OSError:
        return False


def committed(folder: Path) -> int:
    """Rows in all segments."""
    return sum(map(count_rows, folder.glob("runs/rehearsal/segments/evaluate.*")))


def computed(folder: Path) -> list[str]:
    """Every request that was ever answered, as often as it was."""
    lines = [line for path in folder.glob("journal/*") for line in path.read_text().splitlines()]
    return [line.partition(" ")[2] for line in lines]


def shards_of(hpcq: Hpcq) -> set[str]:
    """The ends of the evaluations' ids that `status` shows."""
    units = hpcq("status", "rehearsal", "--json").document["units"]
    return {unit["id"].rpartition(".")[2] for unit in units if unit["kind"] == "evaluate"}


@pytest.mark.timeout(240)
def test_four_shards_then_seven_then_one_give_what_nobody_disturbed(hpcq: Hpcq, begin: Begin) -> None:
    """Killed twice and resumed on 7 shards and elsewhere on 1: the same data; only what was in flight ran twice."""
    manifest = hpcq.write(SLOW)
    in_flight = []
    resumed = ("resume", "rehearsal", "-O")
    for words, rows in (
        (("submit", str(manifest), "-O", "evaluate.shards=4"), 15),
        ((*resumed, "evaluate.shards=7"), 40),
    ):
        process = begin(*words)
        while committed(hpcq.folder) < rows:
            assert process.poll() is None, (hpcq.folder / "output").read_text()
            time.sleep(0.02)
        kill(hpcq.folder)
        process.wait()
        in_flight.append(len(computed(hpcq.folder)) - committed(hpcq.folder) - sum(in_flight))
    assert shards_of(hpcq) == {f"{index}of7" for index in range(7)}
    elsewhere = hpcq.write(ELSEWHERE, "elsewhere.toml")
    process = begin(*resumed, "evaluate.shards=1", "-O", f"cluster.profile={elsewhere}")
    assert process.wait(120) == 0, (hpcq.folder / "output").read_text()

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
    here, there = (data_of(one.folder / "runs" / "rehearsal" / "results.h5") for one in (hpcq, undisturbed))
    assert here == there
    assert len(here) > 10


def test_a_variant_that_is_done_stays_so_on_other_shards(rehearsed: Hpcq) -> None:
    """A finished run has nothing to resume, whatever the number of shards; the next plain resume keeps the number."""
    for words in (("-O", "evaluate.shards=3"), ()):
        assert rehearsed("resume", "rehearsal", *words).code == 0
        assert shards_of(rehearsed) == {"0of3", "1of3", "2of3"}
    assert len(list(rehearsed.folder.glob("runs/rehearsal/attempts/*.json"))) == 6


def test_what_a_finished_variant_lost_is_answered_on_other_shards(rehearsed: Hpcq) -> None:
    """After the merge has told what is missing, the new shards answer that alone, each request once."""
    run = rehearsed.folder / "runs" / "rehearsal"
    lost = next(run.glob("segments/evaluate.*0of2/*.h5"))
    lost.unlink()
    (run / "results.h5").unlink()
    assert rehearsed("merge", "rehearsal").code == 1
    assert rehearsed("resume", "rehearsal", "-O", "evaluate.shards=3").code == 0
    document = rehearsed("merge", "rehearsal", "--json").document
    assert (document["missing"], document["duplicates"]) == (0, 0)
    answered = sum(map(count_rows, run.glob("segments/evaluate.*of3")))
    assert answered == int(lost.stem.rpartition("-")[2])


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (
            "tasks.limit=6",
            (
                "{run}: this run was made from another manifest (tasks.limit was 5 and is 6). "
                "Give this one its own name (-O run.name=rehearsal-2), or remove the folder."
            ),
        ),
        (
            "run.name=other",
            (
                "runs/rehearsal: a run keeps its name and its folders (run.name, paths) as long as it lives; to begin "
                "another one, type `hpcq submit runs/rehearsal/manifest.lock.toml` with these options."
            ),
        ),
        ("evaluate.shards=many", "-O evaluate.shards=many: evaluate.shards: must be a whole number, not 'many'."),
    ],
)
def test_what_would_be_another_run_is_refused(rehearsed: Hpcq, option: str, sentence: str) -> None:
    """Exit code 2, a sentence, and the run stays as it was."""
    lock = rehearsed.folder / "runs" / "rehearsal" / "manifest.lock.toml"
    before = lock.read_bytes()
    done = rehearsed("resume", "rehearsal", "-O", option)
    assert (done.code, done.out) == (2, "")
    assert done.err.strip() == sentence.format(run=lock.parent)
    assert lock.read_bytes() == before
    assert [path.name for path in lock.parent.parent.iterdir()] == ["rehearsal"]
