"""What of a manifest reaches the worker that evaluates, and what of it its content address."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.core.work import EvaluateWork
from hpcq.manifest import load, resolve
from hpcq.plan.plan import make_plan
from hpcq.plan.plan_json import plan_document

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
    """A manifest and a profile in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text(PROFILE, encoding="utf-8")
    Path("m.toml").write_text(MANIFEST, encoding="utf-8")


def work(*options: str) -> EvaluateWork:
    """The one evaluation of the manifest with `options`."""
    [found] = [unit.work for unit in make_plan(resolve(load(Path("m.toml"), options))).units][:1]
    assert isinstance(found, EvaluateWork)
    return found


def test_the_engine_spreads_over_the_gpus_that_the_plan_gives() -> None:
    """The engine's tensor parallel size is the planned one unless the manifest has its own."""
    assert work().engine == (("tensor_parallel_size", 4),)
    assert dict(work("evaluate.engine.tensor_parallel_size=8").engine) == {"tensor_parallel_size": 8}


def test_the_engine_spans_the_nodes_that_the_plan_gives() -> None:
    """405B in BF16 takes two nodes of eight; the worker is told TP8 and PP2, and what the manifest says goes before."""
    Path("c.toml").write_text(PROFILE.replace("gpus_per_node", "nodes = 2\ngpus_per_node"), encoding="utf-8")
    options = ("models.0.id=meta-llama/Llama-3.1-405B-Instruct", "evaluate.max_length=4096")
    plan = make_plan(resolve(load(Path("m.toml"), options)))
    [unit] = [unit for unit in plan.units if isinstance(unit.work, EvaluateWork)]
    assert (unit.shape.nodes, unit.shape.gpus_per_node) == (2, 8)
    assert isinstance(unit.work, EvaluateWork)
    assert unit.work.engine == (("tensor_parallel_size", 8), ("pipeline_parallel_size", 2))
    shown = plan_document(plan, (), {})["units"][0]
    assert (shown["nodes"], shown["tensor_parallel"], shown["pipeline_parallel"]) == (2, 8, 2)
    stages = dict(
        work(*options, "evaluate.engine.tensor_parallel_size=4", "evaluate.engine.pipeline_parallel_size=4").engine
    )
    assert stages == {"tensor_parallel_size": 4, "pipeline_parallel_size": 4}


def test_settings_of_the_engine_change_no_address() -> None:
    """What is set of the engine reaches the worker, and the responses are the same ones."""
    tuned = work("evaluate.engine.max_num_seqs=8", "evaluate.engine.kv_cache_gib=2")
    assert tuned.engine == (("max_num_seqs", 8), ("kv_cache_gib", 2.0), ("tensor_parallel_size", 4))
    assert tuned.address == work().address


@pytest.mark.parametrize(
    ("option", "expected"),
    [("evaluate.max_length=2048", ("max_length", 2048)), ("evaluate.prefix_sharing=false", ("prefix_sharing", False))],
)
def test_what_can_change_a_result_is_an_option_only_where_it_is_set(option: str, expected: tuple[str, int]) -> None:
    """An evaluation without a length of its own, and with prefixes shared, has the address that it always had."""
    assert work().options == ()
    assert work(option).options == (expected,)
    assert work(option).address != work().address
