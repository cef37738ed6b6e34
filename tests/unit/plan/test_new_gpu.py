"""A GPU is one row of gpus.toml, with any name of a link and any number formats."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcq.catalog import gpus, toml_rows
from hpcq.catalog.gpu_aliases import match_gpu
from hpcq.catalog.gpus import find_gpu, gpu_names
from hpcq.catalog.kernels import find_kernel
from hpcq.catalog.schemes import find_scheme
from hpcq.manifest import load, resolve
from hpcq.plan.cost.constants import FLOAT32_RATIO
from hpcq.plan.cost.evaluation import gpu_flops
from hpcq.plan.planner import make_plan
from hpcq.plan.units import Plan

ROWS = """
[Quantum-96]
memory_gib = 95.0
compute_capability = [9, 0]
bandwidth_gb_per_s = 4000
dense_tflops = { fp16 = 900 }
link = "Entanglement 1"
link_gb_per_s = 700
source = "a test"

[Oldie-48]
memory_gib = 47.0
compute_capability = [8, 0]
bandwidth_gb_per_s = 500
dense_tflops = { fp32 = 12 }
link = "Token ring"
link_gb_per_s = 1
link_latency_us = 900
source = "a test"

[Integer-48]
memory_gib = 47.0
compute_capability = [8, 9]
bandwidth_gb_per_s = 500
dense_tflops = { int8 = 400, fp8_e4m3 = 300 }
link = "none"
link_gb_per_s = 1
source = "a test"
"""
NEW = ("Quantum-96", "Oldie-48", "Integer-48")
MANIFEST = """\
[run]
name = "new"
[cluster]
profile = "new.toml"
[[models]]
id = "meta-llama/Llama-3.1-8B-Instruct"
[schemes]
use = ["bf16", "fp8-dynamic", "smoothquant-w8a8", "gptq-w4a16"]
[tasks]
use = ["arc_challenge", "gsm8k"]
"""


@pytest.fixture(autouse=True)
def _new_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A copy of the catalog has these rows in addition; every test runs in a folder with the manifest."""
    shutil.copytree(Path(gpus.__file__).parent, tmp_path / "catalog")
    with (tmp_path / "catalog" / "gpus.toml").open("a") as file:
        file.write(ROWS)
    monkeypatch.setattr(toml_rows, "FOLDER", tmp_path / "catalog")
    monkeypatch.chdir(tmp_path)
    Path("m.toml").write_text(MANIFEST)
    for cached in (toml_rows.catalog_rows, gpus._gpus):
        cached.cache_clear()
    yield
    for cached in (toml_rows.catalog_rows, gpus._gpus):
        cached.cache_clear()


def plan(gpu: str, *overrides: str) -> Plan:
    """Return the plan for nodes with eight of these GPUs."""
    Path("new.toml").write_text(
        f'name = "new"\nscheduler = "slurm"\n[gpu_classes.new]\ngpu = "{gpu}"\ngpus_per_node = 8\nnodes = 2\n'
        "cpus_per_node = 64\nmemory_gib = 1000\n"
    )
    return make_plan(resolve(load(Path("m.toml"), overrides)))


@pytest.mark.parametrize("gpu", NEW)
@pytest.mark.parametrize("backend", ["vllm", "accelerate"])
@pytest.mark.parametrize("objective", ["gpu-hours", "makespan"])
def test_a_new_row_can_be_planned(gpu: str, backend: str, objective: str) -> None:
    """Every variant is placed or refused, and every evaluation has an estimate, for any link and any formats."""
    found = plan(gpu, f"evaluate.backend={backend}", f"plan.objective={objective}")
    seconds = [unit.seconds for unit in found.units if unit.shape.gpus]
    assert seconds
    assert all(one is not None and one > 0 for one in seconds)


@pytest.mark.parametrize("gpu", NEW)
def test_tensor_parallelism_over_a_new_link_is_estimated(gpu: str) -> None:
    """A link of an unknown name has the bandwidth and the latency of its row."""
    found = plan(gpu, "evaluate.backend=vllm", "evaluate.engine.tensor_parallel_size=8", "schemes.use=['bf16']")
    units = [unit for unit in found.units if unit.shape.gpus]
    assert {unit.shape.tensor_parallel for unit in units} == {8}
    assert all(unit.seconds for unit in units)
    row = find_gpu(gpu)
    assert row
    assert row.link_latency_us == (900 if gpu == "Oldie-48" else 40)


@pytest.mark.parametrize(
    ("gpu", "scheme", "dtype", "tflops"),
    [
        ("Quantum-96", "bf16", "bfloat16", 900),
        ("Quantum-96", "fp8-dynamic", "bfloat16", 900),
        ("Quantum-96", "bf16", "float32", 900 * FLOAT32_RATIO),
        ("Oldie-48", "bf16", "bfloat16", 12),
        ("Oldie-48", "bf16", "float32", 12),
        ("Integer-48", "bf16", "bfloat16", 300),
        ("Integer-48", "fp8-dynamic", "bfloat16", 300),
        ("Integer-48", "smoothquant-w8a8", "bfloat16", 400),
        ("H100-80", "fp8-dynamic", "bfloat16", 1979),
        ("H100-80", "bf16", "float32", 989 * FLOAT32_RATIO),
        ("V100-32", "bf16", "bfloat16", 125),
    ],
)
def test_a_missing_format_has_the_speed_of_the_next_best(gpu: str, scheme: str, dtype: str, tflops: float) -> None:
    """In this order: the kernel's format, that of the computation, bf16, fp16, fp32, the slowest of the row."""
    row, quantized = find_gpu(gpu), find_scheme(scheme)
    assert row
    assert quantized
    kernel = find_kernel("vllm", quantized, row.compute_capability)
    assert gpu_flops(row, dtype, kernel) == pytest.approx(tflops * 1e12)


def test_a_plan_notes_the_format_that_an_estimate_uses() -> None:
    """An estimate at the speed of another format is named with the GPU and both formats; others are not."""
    note = "Quantum-96 does not multiply {} (hpcq/catalog/gpus.toml): estimated at its speed in fp16"
    assert plan("Quantum-96", "evaluate.backend=vllm").estimate_notes == tuple(
        map(note.format, ("bf16", "fp8_e4m3", "int8"))
    )
    assert plan("H100-80", "evaluate.backend=vllm").estimate_notes == ()


def test_a_new_row_is_recognized_by_its_name() -> None:
    """Without `cluster_names`, clusters' names match the row's own name, and no other row."""
    assert set(NEW) <= set(gpu_names())
    for name, gpu in (("nvidia_quantum_96gb", "Quantum-96"), ("oldie", "Oldie-48"), ("integer-48", "Integer-48")):
        found = match_gpu(name)
        assert found
        assert found.gpu == gpu
    assert match_gpu("quantumleap") is None
