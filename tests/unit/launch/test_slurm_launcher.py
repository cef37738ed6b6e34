"""Options of sbatch for an array, and values that are refused before sbatch is called."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.errors import UserInputError
from hpcq.launch.multinode.rendezvous import TIMEOUT_VARIABLE
from hpcq.launch.slurm_launcher import SRUN_WAIT_MARGIN_S, sbatch_options, split
from hpcq.launch.submission_files import write_script
from tests.slurm.synthetic_units import layout_at, synthetic_array, synthetic_unit

LAYOUT = layout_at(Path("/missing"))
UNITS = [synthetic_unit(LAYOUT, f"unit-{index}") for index in range(10)]


def test_gpus_are_requested_by_type_if_the_class_has_one() -> None:
    """The request has the class's GPU type; without a type, any GPU matches; a class without GPUs requests none."""
    assert (
        sbatch_options(synthetic_array(LAYOUT, "a", UNITS, gpus_per_node=8, gres_type="h100"))["gres"] == "gpu:h100:8"
    )
    assert sbatch_options(synthetic_array(LAYOUT, "a", UNITS, gpus_per_node=2))["gres"] == "gpu:2"
    assert "gres" not in sbatch_options(synthetic_array(LAYOUT, "a", UNITS))


GPUS = {"gpus_per_node": 4, "gres_type": "h100", "memory_gib": 8.0, "cpus_per_unit": 16}


@pytest.mark.parametrize(
    ("option", "nodes", "expected"),
    [
        ("gres", 2, ["--gres=gpu:h100:4"]),
        ("gpus-per-node", 2, ["--gpus-per-node=h100:4"]),
        ("gpus", 1, ["--gpus=h100:4"]),
        ("gpus", 2, ["--gpus=h100:8"]),
        ("none", 1, []),
    ],
)
def test_gpus_are_requested_as_the_site_wants_it(tmp_path: Path, option: str, nodes: int, expected: list[str]) -> None:
    """Per node, or with --gpus for all nodes; with 'none' there is no request."""
    lines = script_lines(tmp_path, gpu_option=option, nodes=nodes)
    assert [line for line in lines if line.startswith(("--gpu", "--gres"))] == expected


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("mem", ["--mem=8192M"]),
        ("mem-per-cpu", ["--mem-per-cpu=512M"]),
        ("mem-per-gpu", ["--mem-per-gpu=2048M"]),
        ("none", []),
    ],
)
def test_memory_is_requested_as_the_site_wants_it(tmp_path: Path, option: str, expected: list[str]) -> None:
    """The same memory per node in each case; with 'none' there is no request."""
    assert [line for line in script_lines(tmp_path, memory_option=option) if line.startswith("--mem")] == expected


def script_lines(folder: Path, **changes: Any) -> list[str]:
    """Return the options in the batch script of an array of units with four GPUs."""
    options = sbatch_options(synthetic_array(LAYOUT, "a", UNITS[:1], **{**GPUS, **changes}))
    script = write_script(folder, python=sys.executable, options=options, elements=1)
    return [line.split()[1] for line in script.read_text().splitlines() if line.startswith("#SBATCH")]


def test_memory_per_gpu_is_not_requested_without_gpus() -> None:
    """A merge on CPUs gets Slurm's default."""
    options = sbatch_options(synthetic_array(LAYOUT, "a", UNITS, memory_option="mem-per-gpu"))
    assert not [name for name in options if name.startswith("mem")]


def test_a_wckey_of_the_profile_replaces_the_one_of_submitit(tmp_path: Path) -> None:
    """Options that only `extra` has are written with their value."""
    lines = script_lines(tmp_path, extra={"wckey": "mine", "licenses": "a:1", "export": "NONE"})
    assert {"--wckey=mine", "--licenses=a:1", "--export=NONE"} <= set(lines)


def test_the_variables_that_jobs_get_are_stated(tmp_path: Path) -> None:
    """A wrapper or a submit plugin of the site may have another default."""
    assert "--export=ALL" in script_lines(tmp_path)
    assert [line for line in script_lines(tmp_path, extra={"export": "A,B"}) if "export" in line] == ["--export=A,B"]


def test_srun_gets_the_cores_too() -> None:
    """Since Slurm 22.05 srun does not inherit the cores of sbatch."""
    options = sbatch_options(synthetic_array(LAYOUT, "a", UNITS, cpus_per_unit=7))
    assert options["cpus_per_task"] == 7
    assert "--cpus-per-task=7" in options["srun_args"]


def test_srun_waits_for_error_reports_after_a_node_has_failed() -> None:
    """On several nodes srun does not end rank 0 before it can have reported a missing node."""
    spec = synthetic_array(LAYOUT, "a", UNITS, nodes=2)
    arguments = sbatch_options(spec)["srun_args"]
    assert "--kill-on-bad-exit=0" in arguments
    assert f"--wait={50 + SRUN_WAIT_MARGIN_S}" in arguments
    environment = replace(spec.environment, variables=((TIMEOUT_VARIABLE, "899.5"),))
    assert f"--wait={900 + SRUN_WAIT_MARGIN_S}" in sbatch_options(replace(spec, environment=environment))["srun_args"]


def test_memory_is_rounded_up_to_mebibytes() -> None:
    """A fraction of a GiB is never rounded down."""
    assert sbatch_options(synthetic_array(LAYOUT, "a", UNITS, memory_gib=0.0001))["mem"] == "1M"
    assert sbatch_options(synthetic_array(LAYOUT, "a", UNITS, memory_gib=2.5))["mem"] == "2560M"


@pytest.mark.parametrize(("throttle", "parts", "expected"), [(None, 1, 10), (8, 1, 8), (8, 3, 2), (2, 3, 1)])
def test_parts_share_the_throttle(throttle: int | None, parts: int, expected: int) -> None:
    """A split array runs no more units in parallel than an unsplit one, as far as integers allow."""
    assert (
        sbatch_options(synthetic_array(LAYOUT, "a", UNITS, throttle=throttle), parts=parts)["array_parallelism"]
        == expected
    )


def test_arrays_are_requeueable_and_cancelled_if_their_dependency_fails() -> None:
    """A dead node does not end a unit; a dependency that can never be satisfied cancels the array."""
    options = sbatch_options(synthetic_array(LAYOUT, "a", UNITS), dependency="aftercorr:12")
    assert options["dependency"] == "aftercorr:12"
    assert options["additional_parameters"] == {"export": "ALL", "requeue": True, "kill-on-invalid-dep": "yes"}


def test_further_options_are_passed_on_unless_they_are_false() -> None:
    """The profile's extra options are added to ours; an option that is False is not passed."""
    extra = {"reservation": "mine", "contiguous": False, "exclusive": True}
    more = sbatch_options(synthetic_array(LAYOUT, "a", UNITS, extra=extra))["additional_parameters"]
    assert more == {
        "export": "ALL",
        "reservation": "mine",
        "exclusive": True,
        "requeue": True,
        "kill-on-invalid-dep": "yes",
    }


@pytest.mark.parametrize("value", ["a\ntouch trap", "a\r", "a\0b", "\x1b[31m"])
def test_a_line_break_in_a_value_is_refused(value: str) -> None:
    """A value that would start a new line of the batch script, or be invisible in a terminal, is refused."""
    with pytest.raises(UserInputError, match="printable"):
        sbatch_options(synthetic_array(LAYOUT, "a", UNITS, extra={"reservation": value}))
    with pytest.raises(UserInputError, match="printable"):
        sbatch_options(synthetic_array(LAYOUT, "a", UNITS, account=value))


def test_a_long_array_is_split_into_parts_in_order() -> None:
    """All parts except the last have the maximum size, and together they have all units in order."""
    parts = split(UNITS, 4)
    assert [len(part) for part in parts] == [4, 4, 2]
    assert [unit for part in parts for unit in part] == UNITS
