"""Manifest settings that an evaluation's work and its content address contain."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.core.work_records import EvaluateWork
from hpcq.manifest import load, resolve
from hpcq.plan.plan_json import plan_document
from hpcq.plan.planner import make_plan

MANIFEST = """
[run]
name = "r"
[cluster]
profile = "c.toml"
[[models]]
id = "meta-llama/Llama-3.1-70B-Instruct"
[schemes]
use = ["bf16"]
[tasks]
use = ["arc_challenge"]
[evaluate]
backend = "vllm"
"""
PROFILE = """
name = "c"
scheduler = "local"
[gpu_classes.h100]
gpu = "H100-80"
gpus_per_node = 8
cpus_per_node = 8
memory_gib = 64
"""


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create a manifest and a profile in their own folder."""
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text(PROFILE, encoding="utf-8")
    Path("m.toml").write_text(MANIFEST, encoding="utf-8")


def work(*options: str) -> EvaluateWork:
    """Return the only evaluation of the manifest with `options`."""
    [found] = [unit.work for unit in make_plan(resolve(load(Path("m.toml"), options))).units][:1]
    assert isinstance(found, EvaluateWork)
    return found


def test_the_engine_uses_the_planned_gpus() -> None:
    """The engine's tensor parallel size is the planned one unless the manifest has one."""
    assert work().engine_options == (("tensor_parallel_size", 4),)
    assert dict(work("evaluate.engine.tensor_parallel_size=8").engine_options) == {"tensor_parallel_size": 8}


def test_the_engine_uses_the_planned_nodes() -> None:
    """405B in BF16 takes two nodes of eight GPUs: TP8 and PP2. Sizes in the manifest have priority."""
    Path("c.toml").write_text(PROFILE.replace("gpus_per_node", "nodes = 2\ngpus_per_node"), encoding="utf-8")
    options = ("models.0.id=meta-llama/Llama-3.1-405B-Instruct", "evaluate.max_length=4096")
    plan = make_plan(resolve(load(Path("m.toml"), options)))
    [unit] = [unit for unit in plan.units if isinstance(unit.work, EvaluateWork)]
    assert (unit.shape.nodes, unit.shape.gpus_per_node) == (2, 8)
    assert isinstance(unit.work, EvaluateWork)
    assert unit.work.engine_options == (("tensor_parallel_size", 8), ("pipeline_parallel_size", 2))
    shown = plan_document(plan, (), {})["units"][0]
    assert (shown["nodes"], shown["tensor_parallel"], shown["pipeline_parallel"]) == (2, 8, 2)
    stages = dict(
        work(
            *options, "evaluate.engine.tensor_parallel_size=4", "evaluate.engine.pipeline_parallel_size=4"
        ).engine_options
    )
    assert stages == {"tensor_parallel_size": 4, "pipeline_parallel_size": 4}


def test_settings_of_the_engine_change_no_address() -> None:
    """The worker gets the engine's settings, and the address is the same."""
    tuned = work("evaluate.engine.max_num_seqs=8", "evaluate.engine.kv_cache_gib=2")
    assert tuned.engine_options == (("max_num_seqs", 8), ("kv_cache_gib", 2.0), ("tensor_parallel_size", 4))
    assert tuned.address == work().address


@pytest.mark.parametrize(
    ("option", "expected"),
    [("evaluate.max_length=2048", ("max_length", 2048)), ("evaluate.prefix_sharing=false", ("prefix_sharing", False))],
)
def test_options_that_can_change_results_are_addressed_only_if_set(option: str, expected: tuple[str, int]) -> None:
    """With the default length and prefix sharing the address stays that of earlier versions."""
    assert work().options == ()
    assert work(option).options == (expected,)
    assert work(option).address != work().address
