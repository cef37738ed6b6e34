"""Backend of a variant: the manifest's own, or accelerate if that one has no code for the variant."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.core.work_records import EvaluateWork, UnitState
from hpcq.manifest import load, resolve
from hpcq.plan.plan_json import plan_document
from hpcq.plan.planner import make_plan
from hpcq.plan.units import Plan

PROFILE = """
name = "a cluster"
scheduler = "slurm"
[gpu_classes.gpu]
gpu = "{gpu}"
gpus_per_node = {gpus}
nodes = 1
cpus_per_node = 64
memory_gib = 2000
[gpu_classes.h100]
gpu = "H100-80"
gpus_per_node = 1
cpus_per_node = 64
memory_gib = 2000
roles = ["quantize"]
"""
MANIFEST = """
[run]
name = "x"
[cluster]
profile = "cluster.toml"
[[models]]
id = "{model}"
[schemes]
use = {schemes}
[tasks]
use = ["arc_challenge"]
[evaluate]
backend = "vllm"
fallback = {fallback}
[evaluate.engine]
max_num_seqs = 4
"""
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan_on(gpu: str, model: str, *schemes: str, fallback: bool = True, gpus: int = 8) -> Plan:
    """Return the plan of a manifest with backend vLLM, on a cluster with `gpus` such GPUs."""
    profile = PROFILE.format(gpu=gpu, gpus=gpus)
    if gpu == "none":
        profile = profile.replace('gpu = "none"\n', "").replace(f"gpus_per_node = {gpus}\n", "", 1)
    Path("cluster.toml").write_text(profile)
    values = {"model": model, "schemes": list(schemes), "fallback": str(fallback).lower()}
    Path("m.toml").write_text(MANIFEST.format(**values))
    return make_plan(resolve(load(Path("m.toml"))))


def evaluators(plan: Plan) -> dict[str, tuple[str, str]]:
    """Return the backend and the environment by scheme."""
    return {
        unit.work.variant.scheme.name: (unit.work.backend, unit.environment)
        for unit in plan.units
        if isinstance(unit.work, EvaluateWork)
    }


@pytest.mark.parametrize(
    ("gpu", "model", "scheme", "reason"),
    [
        ("H100-80", "Qwen/Qwen-7B-Chat", "bf16", "vLLM 0.32 has no QWenLMHeadModel"),
        ("V100-32", LLAMA, "gptq-w4a16", "vLLM 0.32 does not compute int4 weights with bf16 activations on gpu (7.0)"),
        ("B200-180", LLAMA, "smoothquant-w8a8", "vLLM 0.32 does not compute int8 weights with int8 activations on gpu"),
        ("none", LLAMA, "gptq-w4a16", "vLLM 0.32 does not compute int4 weights with bf16 activations on the CPUs of"),
    ],
)
def test_accelerate_evaluates_what_vllm_has_no_code_for(gpu: str, model: str, scheme: str, reason: str) -> None:
    """It runs in its own environment, without vLLM's settings, and a note gives the reason."""
    plan = plan_on(gpu, model, scheme)
    assert evaluators(plan) == {scheme: ("accelerate", "transformers")}
    assert not plan.refused
    works = [unit.work for unit in plan.units if isinstance(unit.work, EvaluateWork)]
    assert {work.engine_options for work in works} == {()}
    assert {"torch", "transformers"} <= dict(works[0].versions).keys()
    [note] = [note for note in plan.notes if "evaluated by transformers" in note]
    assert reason in note
    units = plan_document(plan, (), dict.fromkeys((unit.id for unit in plan.units), UnitState.WAITING))["units"]
    assert {unit["backend"] for unit in units if unit["kind"] == "evaluate"} == {"accelerate"}


def test_only_the_variant_that_needs_it_changes_its_back_end() -> None:
    """On a CPU, vLLM evaluates bf16 and dynamic FP8, and accelerate evaluates static FP8."""
    found = evaluators(plan_on("none", LLAMA, "bf16", "fp8-dynamic", "fp8"))
    assert {scheme: backend for scheme, (backend, _) in found.items()} == {
        "bf16": "vllm",
        "fp8-dynamic": "vllm",
        "fp8": "accelerate",
    }


def test_too_little_memory_does_not_change_the_back_end() -> None:
    """A model that vLLM could evaluate on larger GPUs is refused with the numbers."""
    plan = plan_on("A6000-48", "meta-llama/Llama-3.1-70B-Instruct", "bf16", gpus=1)
    assert evaluators(plan) == {}
    [refusal] = plan.refused
    assert "GiB per GPU" in refusal.reason


def test_without_fallback_it_is_refused_and_accelerate_suggested() -> None:
    """`fallback = false` keeps all variants on one backend."""
    [refusal] = plan_on("H100-80", "Qwen/Qwen-7B-Chat", "bf16", fallback=False).refused
    assert "has no QWenLMHeadModel" in refusal.reason
    assert "evaluate.backend = 'accelerate'" in refusal.suggestion


def test_if_neither_back_end_works_both_reasons_are_given() -> None:
    """vLLM has no code for the model, and for transformers the GPU is too small."""
    [refusal] = plan_on("L4-24", "Qwen/Qwen-7B-Chat", "fp32", gpus=1).refused
    assert "vLLM 0.32 has no QWenLMHeadModel" in refusal.reason
    assert "transformers 5.17 needs" in refusal.reason
