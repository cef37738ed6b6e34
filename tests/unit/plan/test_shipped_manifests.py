"""The manifests that the checkout brings: they are planned whole, and rehearsed on the places of what they rehearse."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq import api
from hpcq.core.work import EvaluateWork, Kind

MANIFESTS = Path(__file__).resolve().parents[3] / "manifests"
REHEARSED = ("evaluate.backend=synthetic", "evaluate.rehearsal.stands_for=vllm")


@pytest.mark.parametrize("name", ["405b.toml", "paper.toml"])
def test_a_rehearsal_takes_the_places_of_what_it_stands_for(name: str) -> None:
    """Unit by unit the same class, nodes, GPUs, splits and kernel; all in the environment of rehearsals."""
    real, rehearsed = (api.plan(MANIFESTS / name, options).opened.plan for options in ((), REHEARSED))
    assert [(unit.shape, unit.kernel, unit.need) for unit in rehearsed.units] == [
        (unit.shape, unit.kernel, unit.need) for unit in real.units
    ]
    assert {unit.environment for unit in rehearsed.units} == {"core"}


def test_405b_takes_two_nodes_of_eight() -> None:
    """Unquantized TP8×PP2, 8 bits on one node, 4 bits on half of one."""
    plan = api.plan(MANIFESTS / "405b.toml").opened.plan
    shapes = {
        unit.variant.scheme.name: unit.shape for unit in plan.units if unit.kind is Kind.EVALUATE and unit.variant
    }
    assert (shapes["bf16"].nodes, shapes["bf16"].tensor_parallel, shapes["bf16"].pipeline_parallel) == (2, 8, 2)
    assert {name: shape.gpus for name, shape in shapes.items()} == {
        "bf16": 16, "fp8": 8, "smoothquant-w8a8": 8, "gptq-w4a16": 4, "awq-w4a16": 4,
    }  # fmt: skip


def test_what_cannot_run_yet_is_left_out_and_told() -> None:
    """mt-bench is the one refusal, no unit has it, and the plan's notes, which the report shows, name it."""
    plan = api.plan(MANIFESTS / "paper.toml").opened.plan
    assert [refusal.reason.split(":")[0] for refusal in plan.refused] == ["mt-bench"]
    works = [unit.work for unit in plan.units if isinstance(unit.work, EvaluateWork)]
    assert (len(works), {len(work.tasks) for work in works}) == (48, {12})
    assert any(note.startswith("Not evaluated: mt-bench") for note in plan.notes)


def test_a_length_beyond_a_model_s_own_is_not_asked_of_it() -> None:
    """paper.toml's 8192 tokens reach Llama-3.1's workers, not Vicuna's, which takes 2048."""
    plan = api.plan(MANIFESTS / "paper.toml").opened.plan
    lengths = {
        unit.work.variant.model.slug: dict(unit.work.options).get("max_length")
        for unit in plan.units
        if isinstance(unit.work, EvaluateWork)
    }
    assert (lengths["llama-3.1-8b-instruct"], lengths["vicuna-7b-v1.3"], lengths["gemma-2b-it"]) == (8192, None, 8192)


@pytest.mark.parametrize("profile", ["h100", "paper", "template", "virtual"])
def test_every_shipped_profile_plans_the_study(profile: str) -> None:
    """But for what it says that it cannot hold: 405B unquantized, on the study's own cluster."""
    plan = api.plan(MANIFESTS / "paper.toml", [f"cluster.profile=clusters/{profile}.toml"]).opened.plan
    refused = [refusal.variant.split("--")[:2] for refusal in plan.refused if refusal.variant]
    assert refused == ([["llama-3.1-405b-instruct", "bf16"]] if profile == "paper" else [])
