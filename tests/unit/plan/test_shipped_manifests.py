"""Shipped manifests: they can be planned, and their synthetic runs use the same placements."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.api import Run
from hpcq.core.work_records import EvaluateWork, UnitKind

MANIFESTS = Path(__file__).resolve().parents[3] / "manifests"
SYNTHETIC = ("evaluate.backend=synthetic", "evaluate.synthetic.emulate=vllm")


@pytest.mark.parametrize("name", ["405b.toml", "paper.toml"])
def test_a_synthetic_run_uses_the_placements_of_the_emulated_back_end(name: str) -> None:
    """Each unit has the same class, nodes, GPUs, parallelism and kernel. All run in the core environment."""
    real, synthetic = (Run(MANIFESTS / name, options).load().plan for options in ((), SYNTHETIC))
    assert [(unit.shape, unit.kernel, unit.gpu_memory) for unit in synthetic.units] == [
        (unit.shape, unit.kernel, unit.gpu_memory) for unit in real.units
    ]
    assert {unit.environment for unit in synthetic.units} == {"core"}


def test_405b_takes_two_nodes_of_eight() -> None:
    """Unquantized with TP8×PP2, 8 bits on one node, 4 bits on half of a node."""
    plan = Run(MANIFESTS / "405b.toml").load().plan
    shapes = {
        unit.variant.scheme.name: unit.shape for unit in plan.units if unit.kind is UnitKind.EVALUATE and unit.variant
    }
    assert (shapes["bf16"].nodes, shapes["bf16"].tensor_parallel, shapes["bf16"].pipeline_parallel) == (2, 8, 2)
    assert {name: shape.gpus for name, shape in shapes.items()} == {
        "bf16": 16, "fp8": 8, "smoothquant-w8a8": 8, "gptq-w4a16": 4, "awq-w4a16": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "memory_gib", "seconds", "checkpoint_bytes"),
    [("405b.toml", 463.85, 125_374, 1_252_754_512_904), ("paper.toml", 1941.96, 307_748, 1_802_962_130_392)],
)
def test_the_numbers_of_the_plans_are_those_of_earlier_versions(
    name: str, memory_gib: float, seconds: int, checkpoint_bytes: int
) -> None:
    """The sums of memory, of time and of bytes on disk change only if a rule of the estimates is changed on purpose."""
    plan = Run(MANIFESTS / name).load().plan
    assert sum(unit.memory_gib_per_gpu or 0 for unit in plan.units) == pytest.approx(memory_gib, abs=0.005)
    assert round(sum(unit.seconds or 0 for unit in plan.units)) == seconds
    assert plan.checkpoint_bytes == checkpoint_bytes


def test_a_benchmark_that_cannot_run_yet_is_skipped_with_a_note() -> None:
    """mt-bench is the only refusal, no unit has it, and the plan's notes, which the report shows, name it."""
    plan = Run(MANIFESTS / "paper.toml").load().plan
    assert [refusal.reason.split(":")[0] for refusal in plan.refused] == ["mt-bench"]
    works = [unit.work for unit in plan.units if isinstance(unit.work, EvaluateWork)]
    assert (len(works), {len(work.tasks) for work in works}) == (48, {12})
    assert any(note.startswith("Not evaluated: mt-bench") for note in plan.notes)


def test_max_length_beyond_a_models_context_is_not_passed_on() -> None:
    """The 8192 tokens of paper.toml reach the workers of Llama-3.1, but not of Vicuna with its context of 2048."""
    plan = Run(MANIFESTS / "paper.toml").load().plan
    lengths = {
        unit.work.variant.model.slug: dict(unit.work.options).get("max_length")
        for unit in plan.units
        if isinstance(unit.work, EvaluateWork)
    }
    assert (lengths["llama-3.1-8b-instruct"], lengths["vicuna-7b-v1.3"], lengths["gemma-2b-it"]) == (8192, None, 8192)


@pytest.mark.parametrize("profile", ["h100", "h200", "paper", "template", "virtual"])
def test_every_shipped_profile_plans_the_study(profile: str) -> None:
    """Only 405B unquantized is refused, on the study's own cluster, as that profile documents."""
    plan = Run(MANIFESTS / "paper.toml", [f"cluster.profile=clusters/{profile}.toml"]).load().plan
    refused = [refusal.variant.split("--")[:2] for refusal in plan.refused if refusal.variant]
    assert refused == ([["llama-3.1-405b-instruct", "bf16"]] if profile == "paper" else [])
