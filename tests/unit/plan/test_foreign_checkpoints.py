"""Plans with checkpoints that others quantized: no quantization, exact memory, kernels, fallback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcq.core.work_records import EvaluateWork, UnitKind, UnitState
from hpcq.manifest import load, resolve
from hpcq.plan.plan_json import plan_document
from hpcq.plan.planner import make_plan
from hpcq.plan.units import Plan
from tests.checkpoint_files import AWQ, GPTQ, NF4, write_checkpoint, write_safetensors

PROFILE = """
name = "a cluster"
scheduler = "slurm"
[gpu_classes.gpu]
gpu = "H100-80"
gpus_per_node = 4
nodes = 1
cpus_per_node = 64
memory_gib = 2000
"""
MANIFEST = """
[run]
name = "x"
[cluster]
profile = "cluster.toml"
[[models]]
id = "org/Base"
path = "base"
schemes = ["bf16", "gptq-w4a16"]
checkpoints = {checkpoints}
[tasks]
use = ["arc_challenge"]
[evaluate]
backend = "{backend}"
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path / "cache"))
    write_checkpoint(tmp_path / "base")


def plan_with(*checkpoints: str, backend: str = "vllm") -> Plan:
    """Return the plan with these checkpoints of the base model."""
    Path("cluster.toml").write_text(PROFILE)
    Path("m.toml").write_text(MANIFEST.format(checkpoints=json.dumps(checkpoints), backend=backend))
    return make_plan(resolve(load(Path("m.toml"))))


def evaluations(plan: Plan) -> dict[str, EvaluateWork]:
    """Return the evaluations by scheme."""
    works = (unit.work for unit in plan.units)
    return {work.variant.scheme.name: work for work in works if isinstance(work, EvaluateWork)}


def test_a_checkpoint_is_evaluated_but_not_quantized(tmp_path: Path) -> None:
    """A checkpoint has no quantize unit, depends on nothing, and its own folder is evaluated, after the baseline."""
    write_checkpoint(tmp_path / "awq", AWQ)
    plan = plan_with("./awq")
    works = evaluations(plan)
    assert list(works) == ["bf16", "gptq-w4a16", "awq-w4a16-g128 (awq)"]
    assert works["awq-w4a16-g128 (awq)"].checkpoint_path == str(tmp_path / "awq")
    quantized = [unit.variant.scheme.name for unit in plan.units if unit.kind is UnitKind.QUANTIZE and unit.variant]
    assert quantized == ["gptq-w4a16"]
    [unit] = [unit for unit in plan.units if unit.variant and unit.variant.checkpoint]
    assert not unit.depends_on
    assert plan.checkpoint_bytes == plan_with().checkpoint_bytes


def test_memory_is_that_of_the_stored_tensors(tmp_path: Path) -> None:
    """The weights in the estimate are the bytes in the headers of the files, not those of the formats."""
    folder = write_checkpoint(tmp_path / "awq", AWQ)
    for parameters in (10**8, 3 * 10**8):
        write_safetensors(folder / "model.safetensors", weight=(parameters,))
        [unit] = [unit for unit in plan_with("./awq").units if unit.variant and unit.variant.checkpoint]
        assert unit.gpu_memory
        assert unit.gpu_memory.weights == 2 * parameters


def test_a_format_without_a_kernel_falls_back(tmp_path: Path) -> None:
    """accelerate evaluates what vLLM has no kernel for; its address has the version of bitsandbytes."""
    write_checkpoint(tmp_path / "nf4", NF4)
    plan = plan_with("./nf4")
    work = evaluations(plan)["nf4 (nf4)"]
    assert work.backend == "accelerate"
    assert "bitsandbytes" in dict(work.versions)
    assert "bitsandbytes" not in dict(evaluations(plan)["bf16"].versions)
    [note] = [note for note in plan.notes if "evaluated by" in note]
    assert "does not compute nf4 weights with bf16 activations of a checkpoint in the format 'bitsandbytes'" in note


def test_the_document_of_the_plan_names_the_scheme(tmp_path: Path) -> None:
    """`plan --json` has the checkpoint's scheme, and no checkpoint that the unit would write."""
    write_checkpoint(tmp_path / "gptq", GPTQ)
    plan = plan_with("./gptq")
    document = plan_document(plan, (), dict.fromkeys((unit.id for unit in plan.units), UnitState.WAITING))
    [unit] = [unit for unit in document["units"] if unit["scheme"] == "gptq-w4a16-g128 (gptq)"]
    assert unit["kind"] == "evaluate"
    assert unit["kernel"] == "Marlin (GPTQ)"
    assert unit["checkpoint"] is None


def test_weights_that_are_rounded_for_the_evaluation_have_a_note() -> None:
    """A base in float32 that the scheme bf16 evaluates in bfloat16 is not evaluated as it is stored."""
    assert not any("rounded" in note for note in plan_with().notes)
    config = json.loads(Path("base/config.json").read_text())
    Path("base/config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}))
    note = "org/Base: its weights are stored in float32 and are evaluated rounded to bfloat16 (evaluate.dtype)."
    assert note in plan_with().notes
