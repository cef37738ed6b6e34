"""Orders on this machine: what waits, what runs together, what is cancelled, and what Ctrl-C leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpcq.core.attempts import read_attempts
from hpcq.core.paths import RunLayout
from hpcq.core.processes import identity
from hpcq.core.work import State
from hpcq.launch.array_spec import Dependency, Environment, Outcome
from hpcq.launch.local_launcher import LocalLauncher, Machine, fits
from hpcq.launch.recovery.retry_policy import Policy
from tests.slurm.rehearsal import array, layout_at, unit

CHECKOUT = Path(__file__).resolve().parents[3]
TWO_CORES = Machine(cores=2, memory_gib=8)


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """A run in a folder whose name a careless shell would trip over."""
    return layout_at(tmp_path / "it's a run; $(exit 1)")


def test_a_failure_cancels_what_needs_it_and_the_last_unit_runs_all_the_same(layout: RunLayout) -> None:
    """The outcomes are those of Slurm's aftercorr and afterany, and each change is told as it comes."""
    first = array(layout, "first", [unit(layout, "a0", fails=True), unit(layout, "a1")])
    second = array(
        layout,
        "second",
        [unit(layout, "b0"), unit(layout, "b1")],
        depends_on=("first",),
        dependency=Dependency.AFTERCORR,
    )
    both = ("first", "second")
    last = array(layout, "last", [unit(layout, "c")], depends_on=both, dependency=Dependency.AFTERANY)
    told: list[Outcome] = []
    outcomes = LocalLauncher(layout, TWO_CORES, on_change=told.append).run([first, second, last])
    assert {name: outcome.state for name, outcome in outcomes.items()} == {
        "a0": State.FAILED,
        "a1": State.DONE,
        "b0": State.CANCELLED,
        "b1": State.DONE,
        "c": State.DONE,
    }
    assert str(outcomes["a0"].reason).startswith("MemoryError: no message. Given up: out of memory")
    assert outcomes["b0"].reason == f"a0 failed: {outcomes['a0'].reason}"
    assert [outcome for outcome in told if outcome.state is not State.RUNNING] == sorted(
        outcomes.values(), key=told.index
    )
    attempts = read_attempts(layout.attempts)
    assert attempts["c"][0].start >= str(attempts["b1"][0].end)


def test_an_array_may_wait_for_one_element_of_another(layout: RunLayout) -> None:
    """The followers of the element that failed are cancelled, those of its sibling run."""
    first = array(layout, "first", [unit(layout, "a0", fails=True), unit(layout, "a1")])
    after = [
        array(
            layout,
            f"after-{element}",
            [unit(layout, f"b{element}-{shard}") for shard in range(2)],
            depends_on=("first",),
            dependency=Dependency.AFTEROK,
            element=element,
        )
        for element in range(2)
    ]
    outcomes = LocalLauncher(layout, TWO_CORES).run([first, *after])
    assert {name: outcome.state for name, outcome in outcomes.items() if name.startswith("b")} == {
        "b0-0": State.CANCELLED,
        "b0-1": State.CANCELLED,
        "b1-0": State.DONE,
        "b1-1": State.DONE,
    }


ROOM = Machine(cores=8, memory_gib=8, gpus=2)


@pytest.mark.parametrize(
    ("machine", "changes"),
    [
        (replace(ROOM, cores=1), {}),
        (replace(ROOM, memory_gib=0.9), {}),
        (replace(ROOM, parallel_units=1), {}),
        (ROOM, {"throttle": 1}),
        (ROOM, {"gpus_per_node": 2}),
        (ROOM, {"cpus_per_unit": 5}),
    ],
)
def test_cores_memory_gpus_number_and_throttle_bound_what_runs_at_once(
    layout: RunLayout, machine: Machine, changes: dict[str, int]
) -> None:
    """Each alone keeps a second unit waiting; a unit alone always runs, even one that wants more than there is."""
    order = array(layout, "a", [unit(layout, "one"), unit(layout, "two")], **changes)
    assert not fits(order, [order], machine)
    assert fits(order, [], machine)
    assert fits(replace(order, cpus_per_unit=64, memory_gib=4000.0), [], machine)


def test_what_there_is_room_for_runs_at_once(layout: RunLayout) -> None:
    """Units fit together up to the last core, GiB and GPU; an array's throttle counts its own units alone."""
    order = array(layout, "a", [unit(layout, "one")], cpus_per_unit=4, memory_gib=4.0, gpus_per_node=1, throttle=1)
    assert fits(order, [replace(order, name="b")], ROOM)


def test_an_interpreter_that_is_missing_is_told_with_the_place_to_look(layout: RunLayout) -> None:
    """A unit that never began has failed, and its reason names the launcher's log."""
    gone = Environment(name="gone", python="/nowhere/python")
    order = array(layout, "a", [unit(layout, "one")], environment=gone)
    outcome = LocalLauncher(layout, TWO_CORES).run([order])["one"]
    assert outcome.state is State.FAILED
    assert str(outcome.reason).startswith("it did not begin: ")
    assert "/nowhere/python: No such file or directory" in str(outcome.reason)
    (record,) = read_attempts(layout.attempts)["one"]
    assert (record.outcome, record.reason, record.error) == ("failed", outcome.reason, "SetupError")


def killing(layout: RunLayout, times: int) -> Callable[[Outcome], None]:
    """What kills the first `times` attempts of the unit "victim", as the kernel does when memory runs out."""

    def kill(outcome: Outcome) -> None:
        while outcome.unit_id == "victim" and outcome.state is State.RUNNING:
            running = [record for record in read_attempts(layout.attempts).get("victim", []) if not record.end]
            if running and running[0].attempt > times:
                return
            if running:
                os.kill(running[0].pid, signal.SIGKILL)
                return
            time.sleep(0.05)

    return kill


def test_a_killed_unit_is_started_again(layout: RunLayout) -> None:
    """Its records say what became of it, and nothing else ends."""
    order = array(layout, "a", [unit(layout, "victim", seconds=1), unit(layout, "other")])
    outcomes = LocalLauncher(layout, TWO_CORES, on_change=killing(layout, 2)).run([order])
    assert {name: outcome.state for name, outcome in outcomes.items()} == {"victim": State.DONE, "other": State.DONE}
    records = read_attempts(layout.attempts)["victim"]
    assert [(record.outcome, record.failure, record.decision) for record in records] == [
        ("failed", "killed", "again"),
        ("failed", "killed", "again"),
        ("done", None, None),
    ]
    assert records[0].reason == "its process ended without a word: killed, or out of memory"


def test_a_unit_that_is_killed_again_and_again_is_given_up(layout: RunLayout) -> None:
    """After as many attempts as the order allows, none of which has committed anything."""
    order = array(layout, "a", [unit(layout, "victim", seconds=60), unit(layout, "other")])
    order = replace(order, retries=Policy(attempts_without_progress=2))
    outcomes = LocalLauncher(layout, TWO_CORES, on_change=killing(layout, 9)).run([order])
    assert {name: outcome.state for name, outcome in outcomes.items()} == {"victim": State.FAILED, "other": State.DONE}
    assert str(outcomes["victim"].reason).endswith("Given up: killed, and 2 attempts in a row committed nothing")
    assert [record.decision for record in read_attempts(layout.attempts)["victim"]] == ["again", "give up"]


INTERRUPTED = """
import sys
from pathlib import Path
from hpcq.launch.local_launcher import LocalLauncher, Machine
from tests.slurm.rehearsal import array, layout_at, unit
layout = layout_at(Path(sys.argv[1]))
order = array(layout, "a", [unit(layout, f"unit-{i}", seconds=60) for i in range(3)])
LocalLauncher(layout, Machine(cores=2, memory_gib=8)).run([order])
"""


def running_in_group(group: int) -> list[str]:
    """Identities of the group's processes, without those that have ended and that nobody has waited for yet."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    members = [pid for pid in pids if group_of(pid) == group]
    return [process for process in map(identity, members) if process]


def group_of(pid: int) -> int | None:
    """The process group of a process; None where it has gone."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def at_work(layout: RunLayout) -> list[str]:
    """Units whose worker has told what it does."""
    return [unit for unit, records in read_attempts(layout.attempts).items() if records[0].phase]


def test_ctrl_c_stops_what_runs_and_all_can_be_typed_again(tmp_path: Path) -> None:
    """An interrupt of the whole group ends every unit with its record written and one traceback, the launcher's own."""
    layout = layout_at(tmp_path)
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    with subprocess.Popen(command, cwd=CHECKOUT, start_new_session=True, stderr=subprocess.PIPE, text=True) as launcher:
        # At work, not on the way there: a record that says so for ever is then known by its process, which is gone.
        while len(at_work(layout)) < 2 and launcher.poll() is None:
            time.sleep(0.1)
        os.killpg(launcher.pid, signal.SIGINT)
        _, errors = launcher.communicate(timeout=20)
    assert errors.count("Traceback") == 1
    assert errors.strip().endswith("KeyboardInterrupt")
    assert running_in_group(launcher.pid) == []
    assert {records[0].outcome for records in read_attempts(layout.attempts).values()} == {"interrupted"}
    outcomes = LocalLauncher(layout, TWO_CORES).run([array(layout, "a", [unit(layout, "unit-0")])])
    assert outcomes["unit-0"].state is State.DONE
    assert [record.outcome for record in read_attempts(layout.attempts)["unit-0"]] == ["interrupted", "done"]
