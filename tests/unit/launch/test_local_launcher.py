"""Arrays on this machine: which units wait, run at the same time, or are cancelled, and the effect of Ctrl-C."""

from __future__ import annotations

import os
import shlex
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
from hpcq.core.work_records import UnitState
from hpcq.launch import local_launcher
from hpcq.launch.array_spec import Dependency, Environment, UnitResult
from hpcq.launch.local_launcher import LocalLauncher, LocalResources, fits
from hpcq.launch.recovery.retry_policy import RetryPolicy
from hpcq.launch.visible_gpus import VisibleGpus, visible_gpus
from tests.slurm.synthetic_units import layout_at, synthetic_array, synthetic_unit

TWO_CORES = LocalResources(cores=2, memory_gib=8)


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """A run in a folder whose name needs quoting in a shell."""
    return layout_at(tmp_path / "it's a run; $(exit 1)")


def test_a_failure_cancels_dependent_units_and_afterany_units_run(layout: RunLayout) -> None:
    """Results are those of Slurm's aftercorr and afterany, and each change of state is reported."""
    first = synthetic_array(
        layout, "first", [synthetic_unit(layout, "a0", runs_out_of_memory=True), synthetic_unit(layout, "a1")]
    )
    second = synthetic_array(
        layout,
        "second",
        [synthetic_unit(layout, "b0"), synthetic_unit(layout, "b1")],
        depends_on=("first",),
        dependency=Dependency.AFTERCORR,
    )
    both = ("first", "second")
    last = synthetic_array(
        layout, "last", [synthetic_unit(layout, "c")], depends_on=both, dependency=Dependency.AFTERANY
    )
    reported: list[UnitResult] = []
    results = LocalLauncher(layout, TWO_CORES, on_change=reported.append).run([first, second, last])
    assert {name: result.state for name, result in results.items()} == {
        "a0": UnitState.FAILED,
        "a1": UnitState.DONE,
        "b0": UnitState.CANCELLED,
        "b1": UnitState.DONE,
        "c": UnitState.DONE,
    }
    assert str(results["a0"].reason).startswith("MemoryError: no message. Not retried: out of memory")
    assert results["b0"].reason == f"a0 failed: {results['a0'].reason}"
    assert [result for result in reported if result.state is not UnitState.RUNNING] == sorted(
        results.values(), key=reported.index
    )
    attempts = read_attempts(layout.attempts)
    assert attempts["c"][0].start >= str(attempts["b1"][0].end)


def test_an_array_can_depend_on_one_element_of_another(layout: RunLayout) -> None:
    """Units that depend on the failed element are cancelled, those of the other element run."""
    first = synthetic_array(
        layout, "first", [synthetic_unit(layout, "a0", runs_out_of_memory=True), synthetic_unit(layout, "a1")]
    )
    after = [
        synthetic_array(
            layout,
            f"after-{element}",
            [synthetic_unit(layout, f"b{element}-{shard}") for shard in range(2)],
            depends_on=("first",),
            dependency=Dependency.AFTEROK,
            element=element,
        )
        for element in range(2)
    ]
    results = LocalLauncher(layout, TWO_CORES).run([first, *after])
    assert {name: result.state for name, result in results.items() if name.startswith("b")} == {
        "b0-0": UnitState.CANCELLED,
        "b0-1": UnitState.CANCELLED,
        "b1-0": UnitState.DONE,
        "b1-1": UnitState.DONE,
    }


RESOURCES = LocalResources(cores=8, memory_gib=8, gpus=VisibleGpus(names=("0", "1")))


@pytest.mark.parametrize(
    ("resources", "changes"),
    [
        (replace(RESOURCES, cores=1), {}),
        (replace(RESOURCES, memory_gib=0.9), {}),
        (replace(RESOURCES, parallel_units=1), {}),
        (RESOURCES, {"throttle": 1}),
        (RESOURCES, {"gpus_per_node": 2}),
        (RESOURCES, {"cpus_per_unit": 5}),
    ],
)
def test_cores_memory_gpus_number_and_throttle_limit_parallel_units(
    layout: RunLayout, resources: LocalResources, changes: dict[str, int]
) -> None:
    """Each limit delays a second unit. The only unit always runs, even if it needs more than the machine has."""
    spec = synthetic_array(layout, "a", [synthetic_unit(layout, "one"), synthetic_unit(layout, "two")], **changes)
    assert not fits(spec, [spec], resources)
    assert fits(spec, [], resources)
    assert fits(replace(spec, cpus_per_unit=64, memory_gib=4000.0), [], resources)


def test_units_run_in_parallel_up_to_the_limits(layout: RunLayout) -> None:
    """Units may use all cores, memory and GPUs; an array's throttle counts only its own units."""
    spec = synthetic_array(
        layout, "a", [synthetic_unit(layout, "one")], cpus_per_unit=4, memory_gib=4.0, gpus_per_node=1, throttle=1
    )
    assert fits(spec, [replace(spec, name="b")], RESOURCES)


def run_printing_devices(
    layout: RunLayout, monkeypatch: pytest.MonkeyPatch, *, visible: dict[str, str], count: int, units: int, needed: int
) -> list[dict[str, str]]:
    """Run units that need `needed` of `count` GPUs each, and return the variables of each unit's process."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in visible.items():
        monkeypatch.setenv(name, value)
    folder = layout.runs.parent
    folder.mkdir()
    printing = (f'env > {shlex.quote(str(folder))}/"$$.environment"',)
    spec = synthetic_array(
        layout, "a", [synthetic_unit(layout, f"u{number}", seconds=1) for number in range(units)], gpus_per_node=needed
    )
    spec = replace(spec, environment=replace(spec.environment, setup=printing))
    resources = LocalResources(cores=8, memory_gib=64, gpus=visible_gpus(os.environ, count))
    results = LocalLauncher(layout, resources).run([spec])
    assert {result.state for result in results.values()} == {UnitState.DONE}
    printed = (path.read_text().splitlines() for path in folder.glob("*.environment"))
    found = [dict(line.partition("=")[::2] for line in lines) for lines in printed]
    assert len(found) == units
    return [{name: variables[name] for name in VARIABLES if name in variables} for variables in found]


VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
UUID, MIG = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/2"


@pytest.mark.parametrize(
    ("visible", "needed", "expected"),
    [
        ({}, 1, [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, 1, [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "3"}]),
        ({"CUDA_VISIBLE_DEVICES": f"{UUID}, {MIG}"}, 1, [{"CUDA_VISIBLE_DEVICES": one} for one in (UUID, MIG)]),
        ({"CUDA_VISIBLE_DEVICES": "3,2"}, 2, [{"CUDA_VISIBLE_DEVICES": "3,2"}] * 2),
        ({"CUDA_VISIBLE_DEVICES": "5,6,7"}, 2, [{"CUDA_VISIBLE_DEVICES": "5,6"}] * 2),
        ({"CUDA_VISIBLE_DEVICES": "5,-1,7"}, 2, [{"CUDA_VISIBLE_DEVICES": "5"}] * 2),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 1, [{"CUDA_VISIBLE_DEVICES": ""}] * 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 1, [{"CUDA_VISIBLE_DEVICES": ""}] * 2),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, 0, [{"CUDA_VISIBLE_DEVICES": ""}] * 2),
        (
            {"HIP_VISIBLE_DEVICES": "2,3"},
            1,
            [{"CUDA_VISIBLE_DEVICES": one, "HIP_VISIBLE_DEVICES": one} for one in "23"],
        ),
        (
            {"ROCR_VISIBLE_DEVICES": "2,3"},
            1,
            [{"CUDA_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": one} for one in "23"],
        ),
    ],
)
def test_units_share_the_gpus_that_are_visible_to_the_command(
    layout: RunLayout,
    monkeypatch: pytest.MonkeyPatch,
    visible: dict[str, str],
    needed: int,
    expected: list[dict[str, str]],
) -> None:
    """Two units get devices that the user's variable names, in its notation, at most those of the profile's two."""
    found = run_printing_devices(layout, monkeypatch, visible=visible, count=2, units=2, needed=needed)
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_no_gpu_is_used_by_two_units_at_once(layout: RunLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two visible GPUs of a profile with eight, five units take turns."""
    visible = {"CUDA_VISIBLE_DEVICES": "4,6"}
    found = run_printing_devices(layout, monkeypatch, visible=visible, count=8, units=5, needed=1)
    assert {one["CUDA_VISIBLE_DEVICES"] for one in found} == {"4", "6"}
    records = [records[0] for records in read_attempts(layout.attempts).values()]
    for one in records:
        assert sum(other.start <= one.start < str(other.end) for other in records) <= 2


def test_a_missing_interpreter_is_reported_with_the_log(layout: RunLayout) -> None:
    """A unit that did not start has failed, and its reason names the launcher's log."""
    missing = Environment(name="missing", python="/missing/python")
    spec = synthetic_array(layout, "a", [synthetic_unit(layout, "one")], environment=missing)
    result = LocalLauncher(layout, TWO_CORES).run([spec])["one"]
    assert result.state is UnitState.FAILED
    assert str(result.reason).startswith("it did not start: ")
    assert "/missing/python: No such file or directory" in str(result.reason)
    (record,) = read_attempts(layout.attempts)["one"]
    assert (record.outcome, record.reason, record.error) == ("failed", result.reason, "SetupError")


def killing(layout: RunLayout, times: int) -> Callable[[UnitResult], None]:
    """A callback that kills the first `times` attempts of the unit "victim", like the kernel's out-of-memory killer."""

    def kill(result: UnitResult) -> None:
        while result.unit_id == "victim" and result.state is UnitState.RUNNING:
            running = [record for record in read_attempts(layout.attempts).get("victim", []) if not record.end]
            if running and running[0].attempt > times:
                return
            if running:
                os.kill(running[0].pid, signal.SIGKILL)
                return
            time.sleep(0.05)

    return kill


def test_a_killed_unit_is_retried(layout: RunLayout) -> None:
    """Its records have the failures and decisions, and the other unit is not affected."""
    spec = synthetic_array(layout, "a", [synthetic_unit(layout, "victim", seconds=15), synthetic_unit(layout, "other")])
    results = LocalLauncher(layout, TWO_CORES, on_change=killing(layout, 2)).run([spec])
    assert {name: result.state for name, result in results.items()} == {
        "victim": UnitState.DONE,
        "other": UnitState.DONE,
    }
    records = read_attempts(layout.attempts)["victim"]
    assert [(record.outcome, record.failure, record.decision) for record in records] == [
        ("failed", "killed", "retry"),
        ("failed", "killed", "retry"),
        ("done", None, None),
    ]
    assert records[0].reason == "its process exited without reporting a reason: killed, or out of memory"


def test_a_unit_that_is_killed_repeatedly_fails(layout: RunLayout) -> None:
    """After the maximum number of attempts that committed nothing."""
    spec = synthetic_array(
        layout, "a", [synthetic_unit(layout, "victim", seconds=3600), synthetic_unit(layout, "other")]
    )
    spec = replace(spec, retries=RetryPolicy(max_attempts_without_progress=2))
    results = LocalLauncher(layout, TWO_CORES, on_change=killing(layout, 9)).run([spec])
    assert {name: result.state for name, result in results.items()} == {
        "victim": UnitState.FAILED,
        "other": UnitState.DONE,
    }
    assert str(results["victim"].reason).endswith("Not retried: killed, and 2 attempts in a row committed nothing")
    assert [record.decision for record in read_attempts(layout.attempts)["victim"]] == ["retry", "failed permanently"]


BY_USER = "interrupted by the user: its command was stopped (Ctrl-C, `hpcq cancel` or a signal)"

INTERRUPTED = """
import sys
from pathlib import Path
from hpcq.launch.local_launcher import LocalLauncher, LocalResources
from tests.slurm.synthetic_units import layout_at, synthetic_array, synthetic_unit
layout = layout_at(Path(sys.argv[1]))
spec = synthetic_array(layout, "a", [synthetic_unit(layout, f"unit-{i}", seconds=3600) for i in range(3)])
LocalLauncher(layout, LocalResources(cores=2, memory_gib=8)).run([spec])
"""


def running_in_group(group: int) -> list[str]:
    """Identities of the group's processes, without zombies."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    members = [pid for pid in pids if group_of(pid) == group]
    return [process for process in map(identity, members) if process]


def group_of(pid: int) -> int | None:
    """The process group of a process; None if the process has ended."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def units_in_a_phase(layout: RunLayout) -> list[str]:
    """Units whose worker has reported a phase."""
    return [unit for unit, records in read_attempts(layout.attempts).items() if records[0].phase]


def test_ctrl_c_stops_all_units_and_the_run_can_be_repeated(tmp_path: Path) -> None:
    """SIGINT to the group ends each unit after it has written its record; only the launcher prints a traceback."""
    layout = layout_at(tmp_path)
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as launcher:
        # Units in a phase, not starting: a unit that is interrupted while it starts leaves a record with "running".
        while len(units_in_a_phase(layout)) < 2 and launcher.poll() is None:
            time.sleep(0.1)
        os.killpg(launcher.pid, signal.SIGINT)
        _, errors = launcher.communicate()
    assert errors.count("Traceback") == 1
    assert errors.strip().endswith("KeyboardInterrupt")
    assert running_in_group(launcher.pid) == []
    records = [records[0] for records in read_attempts(layout.attempts).values()]
    assert {(record.outcome, record.reason) for record in records} == {("interrupted", BY_USER)}
    results = LocalLauncher(layout, TWO_CORES).run([synthetic_array(layout, "a", [synthetic_unit(layout, "unit-0")])])
    assert results["unit-0"].state is UnitState.DONE
    assert [record.outcome for record in read_attempts(layout.attempts)["unit-0"]] == ["interrupted", "done"]


def test_a_unit_that_cannot_handle_ctrl_c_is_recorded_as_interrupted(
    layout: RunLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker in a long call is killed; `status` took it for "killed, out of memory or out of time"."""
    monkeypatch.setattr(local_launcher, "STOP_TIMEOUT_S", 0.5)

    def interrupt() -> None:
        for records in read_attempts(layout.attempts).values():
            os.kill(records[0].pid, signal.SIGSTOP)
            raise KeyboardInterrupt

    launcher = LocalLauncher(layout, TWO_CORES, on_poll=interrupt)
    with pytest.raises(KeyboardInterrupt):
        launcher.run([synthetic_array(layout, "a", [synthetic_unit(layout, "one", seconds=3600)])])
    (record,) = read_attempts(layout.attempts)["one"]
    assert (record.outcome, record.reason, record.failure) == ("interrupted", BY_USER, None)
    assert record.end
