"""Effect of estimates on plans: placement, shards, time limits, refusals, and calibration by earlier attempts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcq.core.attempts import AttemptRecord
from hpcq.core.failures import Failure
from hpcq.manifest import load, resolve
from hpcq.plan.arrays import make_arrays
from hpcq.plan.cost.calibration import EMPTY_HISTORY, RunHistory, read_history
from hpcq.plan.cost.evaluation import Cost
from hpcq.plan.placement.time_limits import max_worthwhile_shards, padded_seconds, requested_minutes
from hpcq.plan.plan_json import plan_document
from hpcq.plan.planner import make_plan

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
    """Return a function that plans the manifest with options, a time limit, and earlier attempts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path / "cache"))
    Path("m.toml").write_text(MANIFEST, encoding="utf-8")

    def planned(*options: str, limit: int = 1440, earlier: RunHistory = EMPTY_HISTORY) -> dict[str, Any]:
        Path("c.toml").write_text(PROFILE.replace("LIMIT", str(limit)), encoding="utf-8")
        resolved = resolve(load(Path("m.toml"), options))
        plan = make_plan(resolved, earlier)
        return plan_document(plan, make_arrays(plan.units, resolved.profile), {})

    return planned


def evaluations(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the evaluation units."""
    return [unit for unit in document["units"] if unit["kind"] == "evaluate"]


def test_the_class_with_the_fewest_gpu_hours_is_selected(document_of: DocumentOf) -> None:
    """8B fits one GPU of either class; the H100 needs less time, although the A6000 is first in the profile."""
    document = document_of()
    [unit] = evaluations(document)
    assert unit["gpu_class"] == "h100"
    assert document["totals"]["gpu_hours"] == {"h100": pytest.approx(unit["seconds"] / 3600)}
    assert document["totals"]["max_gpu_hours"]["h100"] > document["totals"]["gpu_hours"]["h100"]


def test_finish_balances_over_classes(document_of: DocumentOf) -> None:
    """With many variants some go to the slower class, which would otherwise be idle."""
    names = ["bf16", "gptq-w8a16", "gptq-w4a16", "smoothquant-w8a8", "awq-w4a16", "fp16"] * 1
    text = [f"schemes.use={names!r}", "plan.objective=makespan", "cluster.profile=c.toml"]
    models = 'models=[{id="meta-llama/Llama-3.1-8B-Instruct"},{id="meta-llama/Llama-3.1-70B-Instruct"}]'
    classes = [unit["gpu_class"] for unit in evaluations(document_of(*text, models))]
    assert {"a6000", "h100"} == set(classes)
    assert classes.count("h100") > classes.count("a6000")


@given(st.floats(0, 1e6), st.integers(5, 10_000))
def test_time_limits_have_slack_and_keep_to_the_class(seconds: float, most: int) -> None:
    """3 x loading + 1.5 x computing + 10 minutes, in steps of 5, and at most the class's limit."""
    cost = Cost(start_s=seconds / 8, load_s=seconds / 8, work_s=seconds)
    ample = (3 * seconds / 4 + 1.5 * seconds / 2) / 60 + 10
    minutes = requested_minutes(padded_seconds(cost, shards=2), most)
    assert minutes <= most
    assert minutes == most or (minutes % 5 == 0 and ample - 1e-6 <= minutes <= max(15, ample + 5))
    assert requested_minutes(None, most) == most


def test_shards_are_as_few_as_the_time_limit_allows(document_of: DocumentOf) -> None:
    """One shard if it fits, more if jobs are short, each within its limit; the address is the same."""
    one, many = document_of("schemes.use=['bf16']"), document_of("schemes.use=['bf16']", limit=20)
    assert len(evaluations(one)) == 1
    units = evaluations(many)
    assert len(units) > 1
    assert all(unit["seconds"] < 20 * 60 for unit in units)
    assert one["address"] == many["address"]


def test_a_run_keeps_its_number_of_shards(document_of: DocumentOf) -> None:
    """Another number of shards after calibration would duplicate pending units under other names."""
    first = document_of(limit=20)
    again = document_of(limit=1440, earlier=read_history(first, {}))
    assert [unit["id"] for unit in again["units"]] == [unit["id"] for unit in first["units"]]


def test_automatic_shards_are_no_more_jobs_than_can_be_submitted(document_of: DocumentOf) -> None:
    """For a shorter makespan variants are split, but not into more jobs than `slurm.max_submitted_jobs`."""
    options = ("schemes.use=['bf16','gptq-w4a16']", "plan.objective=makespan")
    free = document_of(*options)
    Path("limited.toml").write_text(PROFILE.replace("LIMIT", "1440\nmax_submitted_jobs = 6"), encoding="utf-8")
    limited = document_of(*options, "cluster.profile=limited.toml")
    assert len(free["units"]) > 6 >= len(limited["units"])


@given(st.floats(1, 1e5), st.floats(0, 1e5), st.floats(1, 1e7))
def test_automatic_shards_load_for_at_most_half_of_their_time(start: float, load_s: float, work: float) -> None:
    """The exception is a single shard, which may load for longer."""
    cost = Cost(start_s=start, load_s=load_s, work_s=work)
    shards = max_worthwhile_shards(cost)
    assert shards == 1 or cost.fixed_s <= cost.seconds(shards) * 0.5000001


def test_too_many_shards_are_refused_with_a_number_that_is_accepted(document_of: DocumentOf) -> None:
    """405B in 500 shards would load for longer than it answers; the suggested number is accepted."""
    options = ("models.0.id=meta-llama/Llama-3.1-405B-Instruct", "schemes.use=['gptq-w4a16']")
    [refused] = document_of(*options, "evaluate.shards=500")["refused"]
    assert "each of 500 shards would load for 10 min and answer for" in refused["reason"]
    assert refused["suggestion"].endswith("or remove it")
    number = refused["suggestion"].split(",")[0].removeprefix("evaluate.shards = ")
    assert document_of(*options, f"evaluate.shards={number}")["refused"] == []


def test_a_limit_too_short_to_load_is_refused_with_a_limit_that_is_accepted(document_of: DocumentOf) -> None:
    """405B does not load in ten minutes; the suggested limit is accepted."""
    options = ("models.0.id=meta-llama/Llama-3.1-405B-Instruct", "schemes.use=['gptq-w4a16']")
    [refused] = document_of(*options, limit=10)["refused"]
    assert "where jobs are limited to 10 min" in refused["reason"]
    suggestion = refused["suggestion"]
    assert suggestion.startswith("a larger slurm.time_limit_minutes, ")
    assert document_of(*options, limit=int(suggestion.split(", ")[1].split(" ")[0]))["refused"] == []


def test_the_synthetic_back_end_takes_exactly_its_configured_time(document_of: DocumentOf) -> None:
    """Load seconds, plus the seconds per request times the requests of a shard."""
    settings = "evaluate.synthetic={request_seconds=0.5, load_seconds=7}"
    use = ("tasks.suites=[]", "tasks.use=['arc_challenge']", "tasks.limit=5", "evaluate.shards=2")
    units = evaluations(document_of("evaluate.backend=synthetic", settings, *use))
    assert [unit["seconds"] for unit in units] == [7 + 0.5 * 20 / 2] * 2


def record(unit: Mapping[str, Any], failure: str | None = None, **facts: float) -> AttemptRecord:
    """An attempt that answered all of 100 requests, as it was planned."""
    planned = {key: unit[key] for key in ("gpu_class", "backend", "uncalibrated_seconds")}
    return AttemptRecord(
        unit=unit["id"], attempt=1, job_id="1", node="n", pid=1, start="2026-01-01T00:00:00.000+00:00", total=100,
        failure=failure, facts={"planned": planned, "answered": 100, **facts},
    )  # fmt: skip


def test_attempts_calibrate_the_estimate(document_of: DocumentOf) -> None:
    """Attempts that took 2, 3 and 50 times the estimate triple it (median), and the plan reports that."""
    first = document_of()
    [unit] = evaluations(first)
    work = unit["uncalibrated_seconds"]["work"]
    attempts = {unit["id"]: [record(unit, answer_seconds=times * work) for times in (2, 3, 50)]}
    again = document_of(earlier=read_history(first, attempts))
    [calibrated] = evaluations(again)
    assert calibrated["uncalibrated_seconds"] == unit["uncalibrated_seconds"]
    fixed = unit["seconds"] - work
    assert calibrated["seconds"] == pytest.approx(fixed + 3 * work, abs=0.2)
    assert "calibrated from 3 attempts on h100: measured 3x the estimate" in again["estimate_notes"]


@pytest.mark.parametrize("facts", [{}, {"answer_seconds": 0.1}, {"answer_seconds": 0.0, "answered": 0}])
def test_attempts_without_measurements_change_nothing(document_of: DocumentOf, facts: dict[str, float]) -> None:
    """Attempts with no measurement, or one that is too short, are ignored."""
    first = document_of()
    [unit] = evaluations(first)
    again = document_of(earlier=read_history(first, {unit["id"]: [record(unit, **facts)]}))
    assert evaluations(again)[0]["seconds"] == unit["seconds"]


def attempts_on_both(unit: Mapping[str, Any]) -> dict[str, list[AttemptRecord]]:
    """Return attempts of a unit: on the A6000 as fast as estimated, then on the H100 60 times slower."""
    work = unit["uncalibrated_seconds"]["work"]
    return {
        unit["id"]: [
            record({**unit, "gpu_class": "a6000"}, answer_seconds=work),
            record(unit, answer_seconds=60 * work),
        ]
    }


def test_attempts_are_compared_with_their_own_plan(document_of: DocumentOf) -> None:
    """A slow H100 moves the unit to another class, if it may; later plans still attribute the attempt to the H100."""
    first = document_of()
    [unit] = evaluations(first)
    attempts = attempts_on_both(unit)
    second = document_of("plan.keep_gpu_class=false", earlier=read_history(first, attempts))
    assert evaluations(second)[0]["gpu_class"] != unit["gpu_class"]
    third = document_of("plan.keep_gpu_class=false", earlier=read_history(second, attempts))
    assert evaluations(third) == evaluations(second)


def test_a_variant_stays_on_its_class(document_of: DocumentOf) -> None:
    """Observed: `resume` moved units, in silence. Other classes only seemed faster, or were; both mix two classes."""
    first = document_of()
    [unit] = evaluations(first)
    stayed = document_of(earlier=read_history(first, attempts_on_both(unit)))
    assert evaluations(stayed)[0]["gpu_class"] == "h100"


def test_a_correction_applies_to_classes_that_were_not_tried(document_of: DocumentOf) -> None:
    """An H100 that is 60 times slower than estimated says nothing for the A6000: new variants go where they went."""
    options = ("schemes.use=['bf16', 'fp16']", "plan.keep_gpu_class=false")
    first = document_of(*options)
    tried, new = evaluations(first)
    attempts = {tried["id"]: [record(tried, answer_seconds=60 * tried["uncalibrated_seconds"]["work"])]}
    again = document_of(*options, earlier=read_history(first, attempts))
    assert [unit["gpu_class"] for unit in evaluations(again)] == [tried["gpu_class"], new["gpu_class"]]
    for before, after in zip((tried, new), evaluations(again), strict=True):
        assert after["seconds"] > 10 * before["seconds"]
    assert again["estimate_notes"][-1].endswith("from 1 attempt on h100: measured 20x the estimate")


def test_a_slow_start_of_a_small_model_does_not_change_the_loading_of_a_large_one(document_of: DocumentOf) -> None:
    """Only starting is corrected; otherwise 405B would seem to load too long for its class."""
    models = 'models=[{id="meta-llama/Llama-3.2-1B-Instruct"},{id="meta-llama/Llama-3.1-405B-Instruct"}]'
    first = document_of(models, "schemes.use=['gptq-w4a16']", limit=600)
    small, large = evaluations(first)
    slow = {small["id"]: [record(small, load_seconds=6 * small["uncalibrated_seconds"]["start"])]}
    again = evaluations(document_of(models, "schemes.use=['gptq-w4a16']", limit=600, earlier=read_history(first, slow)))
    start = large["uncalibrated_seconds"]["start"]
    assert again[1]["seconds"] == pytest.approx(large["seconds"] + 5 * start, rel=0.02)


def test_a_started_run_continues_despite_new_estimates(document_of: DocumentOf) -> None:
    """A short limit forced shards that load for longer than they answer; they are automatic, so not refused."""
    options = ("models.0.id=meta-llama/Llama-3.1-405B-Instruct", "schemes.use=['gptq-w4a16']")
    first = document_of(*options, limit=120)
    assert len(evaluations(first)) > 1
    again = document_of(*options, limit=120, earlier=read_history(first, {}))
    assert [unit["id"] for unit in again["units"]] == [unit["id"] for unit in first["units"]]
    shorter = document_of(*options, limit=10, earlier=read_history(first, {}))
    assert (shorter["refused"], len(shorter["units"])) == ([], len(first["units"]))


def test_a_unit_that_exceeded_its_limit_gets_the_longest_limit(document_of: DocumentOf) -> None:
    """Its estimate no longer counts."""
    first = document_of(limit=600)
    [unit] = evaluations(first)
    attempts = {unit["id"]: [record(unit, failure=Failure.TIMEOUT)]}
    again = document_of(limit=600, earlier=read_history(first, attempts))
    limits = [
        [array["time_limit_minutes"] for array in document["arrays"] if unit["id"] in array["units"]]
        for document in (first, again)
    ]
    assert limits[0] < [600]
    assert limits[1] == [600]
