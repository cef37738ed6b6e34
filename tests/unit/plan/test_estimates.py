"""What plans make of estimates: places, shards, time limits, refusals, and what earlier attempts put right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcq.core.attempts import AttemptRecord
from hpcq.manifest import load, resolve
from hpcq.plan.arrays import make_arrays
from hpcq.plan.cost.calibration import NOTHING_EARLIER, Earlier, earlier_of
from hpcq.plan.cost.evaluation import Cost
from hpcq.plan.placement.time_limits import ample_seconds, asked_minutes, worthwhile_shards
from hpcq.plan.plan import make_plan
from hpcq.plan.plan_json import plan_document

MANIFEST = """
[run]
name = "r"
[cluster]
profile = "c.toml"
[[models]]
id = "meta-llama/Llama-3.1-8B-Instruct"
[schemes]
use = ["bf16"]
[tasks]
suites = ["openllm-v1"]
[evaluate]
backend = "vllm"
max_length = 4096
"""
PROFILE = """
name = "c"
scheduler = "slurm"
[slurm]
time_limit_minutes = LIMIT
[gpu_classes.a6000]
gpu = "A6000-48"
gpus_per_node = 4
cpus_per_node = 32
memory_gib = 2000
[gpu_classes.h100]
gpu = "H100-80"
gpus_per_node = 4
cpus_per_node = 32
memory_gib = 2000
"""
DocumentOf = Callable[..., dict[str, Any]]


@pytest.fixture
def document_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DocumentOf:
    """A function that plans the manifest with options, a time limit, and what was earlier."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path / "cache"))
    Path("m.toml").write_text(MANIFEST, encoding="utf-8")

    def planned(*options: str, limit: int = 1440, earlier: Earlier = NOTHING_EARLIER) -> dict[str, Any]:
        Path("c.toml").write_text(PROFILE.replace("LIMIT", str(limit)), encoding="utf-8")
        resolved = resolve(load(Path("m.toml"), options))
        plan = make_plan(resolved, earlier)
        return plan_document(plan, make_arrays(plan.units, resolved.profile), {})

    return planned


def evaluations(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The units that evaluate."""
    return [unit for unit in document["units"] if unit["kind"] == "evaluate"]


def test_the_fewest_gpu_hours_are_taken_first(document_of: DocumentOf) -> None:
    """8B fits one GPU of either class; the H100 takes less of its time, though the profile names the A6000 first."""
    document = document_of()
    [unit] = evaluations(document)
    assert unit["gpu_class"] == "h100"
    assert document["totals"]["gpu_hours"] == {"h100": pytest.approx(unit["seconds"] / 3600)}
    assert document["totals"]["gpu_hours_at_most"]["h100"] > document["totals"]["gpu_hours"]["h100"]


def test_finish_balances_over_classes(document_of: DocumentOf) -> None:
    """Of many variants some go to the slower class, so that it does not stand idle."""
    names = ["bf16", "gptq-w8a16", "gptq-w4a16", "smoothquant-w8a8", "awq-w4a16", "fp16"] * 1
    text = [f"schemes.use={names!r}", "plan.objective=finish", "cluster.profile=c.toml"]
    models = 'models=[{id="meta-llama/Llama-3.1-8B-Instruct"},{id="meta-llama/Llama-3.1-70B-Instruct"}]'
    classes = [unit["gpu_class"] for unit in evaluations(document_of(*text, models))]
    assert {"a6000", "h100"} == set(classes)
    assert classes.count("h100") > classes.count("a6000")


@given(st.floats(0, 1e6), st.integers(5, 10_000))
def test_time_limits_have_slack_and_keep_to_the_class(seconds: float, most: int) -> None:
    """Three times what loads, one and a half times what computes, ten minutes; in steps of five, within the class's."""
    cost = Cost(start=seconds / 8, load=seconds / 8, work=seconds)
    ample = (3 * seconds / 4 + 1.5 * seconds / 2) / 60 + 10
    minutes = asked_minutes(ample_seconds(cost, shards=2), most)
    assert minutes <= most
    assert minutes == most or (minutes % 5 == 0 and ample - 1e-6 <= minutes <= max(15, ample + 5))
    assert asked_minutes(None, most) == most


def test_shards_are_as_many_as_the_limit_takes(document_of: DocumentOf) -> None:
    """One where it fits, more where jobs are short, each within its limit; the addresses stay."""
    one, many = document_of("schemes.use=['bf16']"), document_of("schemes.use=['bf16']", limit=20)
    assert len(evaluations(one)) == 1
    units = evaluations(many)
    assert len(units) > 1
    assert all(unit["seconds"] < 20 * 60 for unit in units)
    assert one["address"] == many["address"]


def test_a_run_keeps_the_shards_that_it_began_with(document_of: DocumentOf) -> None:
    """A calibrated estimate asks for other shards, and units that wait would be doubled by units of other names."""
    first = document_of(limit=20)
    again = document_of(limit=1440, earlier=earlier_of(first, {}))
    assert [unit["id"] for unit in again["units"]] == [unit["id"] for unit in first["units"]]


@given(st.floats(1, 1e5), st.floats(0, 1e5), st.floats(1, 1e7))
def test_shards_worth_loading_for_load_for_half_of_their_time_at_most(start: float, load_s: float, work: float) -> None:
    """Unless one alone loads for longer."""
    cost = Cost(start=start, load=load_s, work=work)
    shards = worthwhile_shards(cost)
    assert shards == 1 or cost.fixed <= cost.seconds(shards) * 0.5000001


def test_loading_for_longer_than_answering_is_refused_with_the_number_that_does(document_of: DocumentOf) -> None:
    """405B in FP8 in 50 shards, and the refusal's number is taken."""
    options = ("models.0.id=meta-llama/Llama-3.1-405B-Instruct", "schemes.use=['gptq-w4a16']")
    [refused] = document_of(*options, "evaluate.shards=500")["refused"]
    assert "each of 500 shards would load for 10 min to answer for" in refused["reason"]
    assert refused["try"].endswith("or leave it out")
    number = refused["try"].split(",")[0].removeprefix("evaluate.shards = ")
    assert document_of(*options, f"evaluate.shards={number}")["refused"] == []


def test_a_limit_too_short_to_load_is_refused_with_the_limit_that_does(document_of: DocumentOf) -> None:
    """Ten minutes do not load 405B; the number in the cure does."""
    options = ("models.0.id=meta-llama/Llama-3.1-405B-Instruct", "schemes.use=['gptq-w4a16']")
    [refused] = document_of(*options, limit=10)["refused"]
    assert "whose jobs end after 10 min" in refused["reason"]
    cure = refused["try"]
    assert cure.startswith("a larger slurm.time_limit_minutes, ")
    assert document_of(*options, limit=int(cure.split(", ")[1].split(" ")[0]))["refused"] == []


def test_a_rehearsal_takes_exactly_its_pace(document_of: DocumentOf) -> None:
    """Load seconds, and seconds a request, of a shard's share of them."""
    pace = "evaluate.rehearsal={request_seconds=0.5, load_seconds=7}"
    use = ("tasks.suites=[]", "tasks.use=['arc_challenge']", "tasks.limit=5", "evaluate.shards=2")
    units = evaluations(document_of("evaluate.backend=synthetic", pace, *use))
    assert [unit["seconds"] for unit in units] == [7 + 0.5 * 20 / 2] * 2


def record(unit: Mapping[str, Any], failure: str | None = None, **facts: float) -> AttemptRecord:
    """An attempt that answered all of 100 requests, as it was planned."""
    planned = {key: unit[key] for key in ("gpu_class", "backend", "reckoned_seconds")}
    return AttemptRecord(
        unit=unit["id"], attempt=1, job_id="1", node="n", pid=1, start="2026-01-01T00:00:00.000+00:00", total=100,
        failure=failure, facts={"planned": planned, "answered": 100, **facts},
    )  # fmt: skip


def test_attempts_put_the_estimate_right(document_of: DocumentOf) -> None:
    """Three attempts that answered 2, 3 and 50 times slower make it three times slower, and the plan says so."""
    first = document_of()
    [unit] = evaluations(first)
    work = unit["reckoned_seconds"]["work"]
    attempts = {unit["id"]: [record(unit, answer_seconds=times * work) for times in (2, 3, 50)]}
    again = document_of(earlier=earlier_of(first, attempts))
    [calibrated] = evaluations(again)
    assert calibrated["reckoned_seconds"] == unit["reckoned_seconds"]
    fixed = unit["seconds"] - work
    assert calibrated["seconds"] == pytest.approx(fixed + 3 * work, abs=0.2)
    assert "calibrated by 3 attempts on h100: 3 x slower than reckoned" in again["reckoning"]


@pytest.mark.parametrize("facts", [{}, {"answer_seconds": 0.1}, {"answer_seconds": 0.0, "answered": 0}])
def test_attempts_that_tell_nothing_change_nothing(document_of: DocumentOf, facts: dict[str, float]) -> None:
    """Nothing measured, or too short to tell."""
    first = document_of()
    [unit] = evaluations(first)
    again = document_of(earlier=earlier_of(first, {unit["id"]: [record(unit, **facts)]}))
    assert evaluations(again)[0]["seconds"] == unit["seconds"]


def test_attempts_are_measured_against_what_they_were_planned_as(document_of: DocumentOf) -> None:
    """Six times slower on an H100, and the next plan goes elsewhere: later plans still know where that was."""
    first = document_of()
    [unit] = evaluations(first)
    attempts = {unit["id"]: [record(unit, answer_seconds=60 * unit["reckoned_seconds"]["work"])]}
    second = document_of(earlier=earlier_of(first, attempts))
    assert evaluations(second)[0]["gpu_class"] != unit["gpu_class"]
    third = document_of(earlier=earlier_of(second, attempts))
    assert evaluations(third) == evaluations(second)


def test_a_slow_start_of_a_small_model_says_nothing_of_a_large_one_that_loads(document_of: DocumentOf) -> None:
    """Nor does it make 405B seem too long to load for its class."""
    models = 'models=[{id="meta-llama/Llama-3.2-1B-Instruct"},{id="meta-llama/Llama-3.1-405B-Instruct"}]'
    first = document_of(models, "schemes.use=['gptq-w4a16']", limit=600)
    small, large = evaluations(first)
    slow = {small["id"]: [record(small, load_seconds=6 * small["reckoned_seconds"]["start"])]}
    again = evaluations(document_of(models, "schemes.use=['gptq-w4a16']", limit=600, earlier=earlier_of(first, slow)))
    start = large["reckoned_seconds"]["start"]
    assert again[1]["seconds"] == pytest.approx(large["seconds"] + 5 * start, rel=0.02)


def test_what_has_begun_goes_on_whatever_is_reckoned_by_now(document_of: DocumentOf) -> None:
    """Shards that a short limit forced load for longer than they answer; nobody stated them, and nobody is refused."""
    options = ("models.0.id=meta-llama/Llama-3.1-405B-Instruct", "schemes.use=['gptq-w4a16']")
    first = document_of(*options, limit=120)
    assert len(evaluations(first)) > 1
    again = document_of(*options, limit=120, earlier=earlier_of(first, {}))
    assert [unit["id"] for unit in again["units"]] == [unit["id"] for unit in first["units"]]
    shorter = document_of(*options, limit=10, earlier=earlier_of(first, {}))
    assert (shorter["refused"], len(shorter["units"])) == ([], len(first["units"]))


def test_a_unit_that_met_its_limit_gets_the_longest_there_is(document_of: DocumentOf) -> None:
    """Whatever was reckoned for it."""
    first = document_of(limit=600)
    [unit] = evaluations(first)
    attempts = {unit["id"]: [record(unit, failure="timeout")]}
    again = document_of(limit=600, earlier=earlier_of(first, attempts))
    limits = [
        [array["time_limit_minutes"] for array in document["arrays"] if unit["id"] in array["units"]]
        for document in (first, again)
    ]
    assert limits[0] < [600]
    assert limits[1] == [600]
