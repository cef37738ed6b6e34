"""What an order becomes in sbatch's words, and what is refused before sbatch sees it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hpcq.core.errors import UserInputError
from hpcq.launch.multinode.rendezvous import DEADLINE_VARIABLE
from hpcq.launch.slurm_launcher import STRAGGLERS_S, sbatch_options, split
from tests.slurm.rehearsal import array, layout_at, unit

LAYOUT = layout_at(Path("/nowhere"))
UNITS = [unit(LAYOUT, f"unit-{index}") for index in range(10)]


def test_gpus_are_asked_for_by_type_where_the_class_has_one() -> None:
    """The class's GPU type stands in the request; without one any GPU will do; a class of CPUs asks for none."""
    assert sbatch_options(array(LAYOUT, "a", UNITS, gpus_per_node=8, gres_type="h100"))["gres"] == "gpu:h100:8"
    assert sbatch_options(array(LAYOUT, "a", UNITS, gpus_per_node=2))["gres"] == "gpu:2"
    assert "gres" not in sbatch_options(array(LAYOUT, "a", UNITS))


def test_cores_are_told_to_srun_too() -> None:
    """Since Slurm 22.05 srun does not inherit the cores of sbatch."""
    options = sbatch_options(array(LAYOUT, "a", UNITS, cpus_per_unit=7))
    assert options["cpus_per_task"] == 7
    assert "--cpus-per-task=7" in options["srun_args"]


def test_a_node_may_say_why_it_ends_before_the_others_are_ended() -> None:
    """Over several nodes srun does not end the others before node 0 can have named one that has not come."""
    order = array(LAYOUT, "a", UNITS, nodes=2)
    arguments = sbatch_options(order)["srun_args"]
    assert "--kill-on-bad-exit=0" in arguments
    assert f"--wait={50 + STRAGGLERS_S}" in arguments
    patient = replace(order.environment, variables=((DEADLINE_VARIABLE, "899.5"),))
    assert f"--wait={900 + STRAGGLERS_S}" in sbatch_options(replace(order, environment=patient))["srun_args"]


def test_memory_is_rounded_up_to_whole_mebibytes() -> None:
    """A fraction of a GiB is never rounded to less."""
    assert sbatch_options(array(LAYOUT, "a", UNITS, memory_gib=0.0001))["mem"] == "1M"
    assert sbatch_options(array(LAYOUT, "a", UNITS, memory_gib=2.5))["mem"] == "2560M"


@pytest.mark.parametrize(("throttle", "parts", "expected"), [(None, 1, 10), (8, 1, 8), (8, 3, 2), (2, 3, 1)])
def test_parts_share_the_throttle(throttle: int | None, parts: int, expected: int) -> None:
    """An order that was split does not run more units at once than one that was not, as far as whole numbers allow."""
    assert sbatch_options(array(LAYOUT, "a", UNITS, throttle=throttle), parts=parts)["array_parallelism"] == expected


def test_a_failed_dependency_ends_what_waits_for_it_and_a_dead_node_does_not_end_a_unit() -> None:
    """Every array is requeueable and is cancelled when its dependency can never be satisfied."""
    options = sbatch_options(array(LAYOUT, "a", UNITS), dependency="aftercorr:12")
    assert options["dependency"] == "aftercorr:12"
    assert options["additional_parameters"] == {"requeue": True, "kill-on-invalid-dep": "yes"}


def test_further_options_are_passed_on_unless_they_are_false() -> None:
    """The profile's extra options stand beside ours; one that is False is not passed."""
    extra = {"reservation": "mine", "contiguous": False, "exclusive": True}
    more = sbatch_options(array(LAYOUT, "a", UNITS, extra=extra))["additional_parameters"]
    assert more == {"reservation": "mine", "exclusive": True, "requeue": True, "kill-on-invalid-dep": "yes"}


@pytest.mark.parametrize("value", ["a\ntouch trap", "a\r", "a\0b", "\x1b[31m"])
def test_a_line_break_in_a_value_is_refused(value: str) -> None:
    """A value that would begin a new line of the batch script, or hide in a terminal, is no option."""
    with pytest.raises(UserInputError, match="printable"):
        sbatch_options(array(LAYOUT, "a", UNITS, extra={"reservation": value}))
    with pytest.raises(UserInputError, match="printable"):
        sbatch_options(array(LAYOUT, "a", UNITS, account=value))


def test_a_long_order_is_split_into_parts_that_keep_its_order() -> None:
    """Parts are full except the last, and together they are the order."""
    parts = split(UNITS, 4)
    assert [len(part) for part in parts] == [4, 4, 2]
    assert [unit for part in parts for unit in part] == UNITS
