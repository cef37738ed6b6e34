"""Offloading of weights: only if allowed and necessary, as little as possible, and included in the estimates."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.core.work_records import EvaluateWork, Offload, UnitKind
from hpcq.launch.build_array_spec import build_array_spec
from hpcq.manifest import load, resolve
from hpcq.plan.arrays import make_arrays
from hpcq.plan.memory.weights import GIB
from hpcq.plan.plan_json import plan_document
from hpcq.plan.planner import make_plan
from hpcq.plan.units import Plan
from tests.checkpoint_files import complete

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
LLAMA_70B = "meta-llama/Llama-3.1-70B-Instruct"
LLAMA_405B = "meta-llama/Llama-3.1-405B-Instruct"


def node(name: str, gpu: str | None, gpus: int = 1, memory_gib: int = 500, more: str = "") -> str:
    """Return the profile's table of one node class."""
    kind = f'gpu = "{gpu}"\ngpus_per_node = {gpus}\n' if gpu else ""
    return f"[gpu_classes.{name}]\n{kind}cpus_per_node = 64\nmemory_gib = {memory_gib}\n{more}\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path / "cache"))


def plan_on(
    classes: str, model: str, offload: str, *, backend: str = "accelerate", scheme: str = "bf16", batch: int = 8
) -> Plan:
    """Return the plan of one variant on a cluster with these classes, where jobs may run for a year."""
    head = 'name = "c"\nscheduler = "slurm"\nslurm.time_limit_minutes = 525600\n'
    Path("c.toml").write_text(head + classes)
    Path("m.toml").write_text(
        f'[run]\nname = "x"\n[cluster]\nprofile = "c.toml"\n[[models]]\nid = "{model}"\n[schemes]\nuse = ["{scheme}"]\n'
        f'[tasks]\nuse = ["arc_challenge"]\n[evaluate]\nbackend = "{backend}"\nbatch_size = {batch}\n'
        + (f'offload = "{offload}"\n' if offload else "")
    )
    return make_plan(resolve(load(Path("m.toml"))))


def evaluation(plan: Plan) -> EvaluateWork:
    """Return the work of the only evaluation."""
    [work] = [unit.work for unit in plan.units if isinstance(unit.work, EvaluateWork)]
    return work


def host_gib(plan: Plan) -> dict[UnitKind, float | None]:
    """Return by kind of unit the host memory that its jobs request from Slurm."""
    profile = resolve(load(Path("m.toml"))).profile
    return {array.kind: build_array_spec("x", array, profile).memory_gib for array in make_arrays(plan.units, profile)}


def test_70b_on_one_h100_keeps_the_rest_in_host_memory() -> None:
    """Two fifths of 131.4 GiB stay on the GPU; the plan notes it, and the work has the exact sizes."""
    plan = plan_on(node("h100", "H100-80", gpus=4), LLAMA_405B, "cpu", batch=1)
    assert "also with evaluate.offload = 'cpu'" in plan.refused[0].reason
    plan = plan_on(node("h100", "H100-80"), LLAMA_70B, "cpu")
    [unit] = [unit for unit in plan.units if unit.kind is UnitKind.EVALUATE]
    assert unit.offloaded
    on_gpu = unit.offloaded.total_bytes - unit.offloaded.host_bytes
    assert unit.offloaded.total_bytes == pytest.approx(131.4 * GIB, rel=0.001)
    assert 50 * GIB < on_gpu < 60 * GIB
    assert unit.memory_gib_per_gpu
    assert on_gpu / GIB < unit.memory_gib_per_gpu <= 73.3
    work = evaluation(plan)
    assert work.offload.to == "cpu"
    assert work.offload.host_gib == pytest.approx(unit.offloaded.host_bytes / GIB, abs=4)
    assert host_gib(plan)[UnitKind.EVALUATE] == 500  # all of the node is its share: it has one GPU
    [note] = [note for note in plan.notes if "host memory" in note]
    assert " on h100: 75.3 GiB of its weights in host memory are copied to the GPU for each forward pass" in note
    assert note.endswith(", which is slow, because no class holds all 131.4 GiB.")
    document = plan_document(plan, (), {unit.id: "waiting" for unit in plan.units})["units"][0]
    assert document["offloaded_gib"] == {"host": pytest.approx(unit.offloaded.host_bytes / GIB, abs=0.01), "disk": 0.0}


def test_a_job_requests_the_host_memory_that_it_needs() -> None:
    """With GPUs at least their share, on cores what weights and process need; the profile has priority."""
    cpus = node("cpu", None, memory_gib=512)
    assert host_gib(plan_on(cpus, LLAMA_70B, "disk"))[UnitKind.EVALUATE] is None  # the node holds it: Slurm's default
    plan = plan_on(node("l4", "L4-24", gpus=2, memory_gib=128), LLAMA_70B, "cpu", batch=1)
    [unit] = [unit for unit in plan.units if unit.kind is UnitKind.EVALUATE]
    assert unit.offloaded
    assert unit.shape.gpus_per_node == 2
    assert unit.offloaded.host_bytes / GIB < unit.offloaded.host_request_gib <= 128
    assert host_gib(plan)[UnitKind.EVALUATE] == 128
    small = node("l4", "L4-24", gpus=2, memory_gib=256, more="memory_gib_per_unit = 64")
    assert plan_on(small, LLAMA_70B, "cpu", batch=1).refused


def test_weights_stay_on_gpus_if_they_fit_on_some_class() -> None:
    """The key permits offloading, but does not request it: the larger class is selected, without offloading."""
    classes = node("small", "A10-24") + node("large", "H100-80", gpus=4)
    plan = plan_on(classes, LLAMA_70B, "disk")
    assert [unit.shape.gpu_class for unit in plan.units if unit.kind is UnitKind.EVALUATE] == ["large"]
    assert evaluation(plan).offload == Offload()
    assert not [note for note in plan.notes if "weights" in note]


def test_the_placement_that_offloads_least_is_selected() -> None:
    """All GPUs of the class with the most memory are used, independent of the GPU-hours."""
    classes = node("small", "A6000-48", gpus=2, memory_gib=1000) + node("large", "H100-80", gpus=2, memory_gib=1000)
    plan = plan_on(classes, LLAMA_405B, "cpu")
    [unit] = [unit for unit in plan.units if unit.kind is UnitKind.EVALUATE]
    assert (unit.shape.gpu_class, unit.shape.gpus_per_node) == ("large", 2)


def test_the_disk_holds_what_does_not_fit_in_host_memory() -> None:
    """The disk is used with little host memory, and on a node without GPUs, which can offload to disk only."""
    plan = plan_on(node("h100", "H100-80", memory_gib=64), LLAMA_70B, "disk")
    work = evaluation(plan)
    assert work.offload.to == "disk"
    [note] = [note for note in plan.notes if "disk" in note]
    assert "GiB of its weights in host memory and " in note
    cpus = node("cpu", None, memory_gib=64)
    assert "evaluate.offload" not in plan_on(cpus, LLAMA_70B, "none").refused[0].suggestion
    plan = plan_on(cpus, LLAMA_70B, "disk")
    assert evaluation(plan).offload.gpu_gib == ()
    [note] = [note for note in plan.notes if "disk" in note]
    assert "copied to memory for each forward pass" in note
    assert host_gib(plan)[UnitKind.EVALUATE] == pytest.approx(64, abs=1)


def test_a_quantized_checkpoint_is_not_put_on_disk() -> None:
    """It is decompressed in memory: with 'disk' it may use host memory only."""
    makers = node("maker", "H200-141", gpus=8, memory_gib=2000, more='roles = ["quantize", "merge"]')
    small = node("h100", "H100-80", memory_gib=64)
    assert plan_on(makers + small, LLAMA_70B, "disk", scheme="fp8").refused
    plan = plan_on(makers + node("h100", "H100-80", memory_gib=256), LLAMA_70B, "disk", scheme="fp8")
    assert evaluation(plan).offload.to == "cpu"


def test_copying_offloaded_weights_takes_time_for_each_pass() -> None:
    """With four fifths of 70B offloaded, the same tokens take several times as long as on GPUs only."""
    fits = plan_on(node("a100", "A100-40", gpus=5), LLAMA_70B, "cpu")
    offloads = plan_on(node("a100", "A100-40", gpus=1), LLAMA_70B, "cpu")
    disk = plan_on(node("a100", "A100-40", gpus=1, memory_gib=32), LLAMA_70B, "disk")
    works = [
        unit.uncalibrated_seconds.work
        for plan in (fits, offloads, disk)
        for unit in plan.units[:1]
        if unit.uncalibrated_seconds
    ]
    assert evaluation(fits).offload == Offload()
    assert works[0] * 1.5 < works[1]
    assert works[1] * 2 < works[2]


def test_offloading_is_suggested_if_it_suffices() -> None:
    """The suggestion is for accelerate, and names the key that suffices."""
    h100 = node("h100", "H100-80")
    assert plan_on(h100, LLAMA_70B, "").refused[0].suggestion == "evaluate.offload = 'cpu'"
    few = node("h100", "H100-80", memory_gib=64)
    assert plan_on(few, LLAMA_70B, "cpu").refused[0].suggestion == "evaluate.offload = 'disk'"
    assert "more memory" in plan_on(few, LLAMA_70B, "").refused[0].suggestion


def test_vllm_never_offloads_but_its_fallback_does() -> None:
    """Without code for a model vLLM's fallback offloads; with code, insufficient memory is refused despite the key."""
    plan = plan_on(node("t4", "V100-16", memory_gib=64), "Qwen/Qwen-7B-Chat", "cpu", backend="vllm", batch=1)
    assert evaluation(plan).backend == "accelerate"
    assert evaluation(plan).offload.to == "cpu"
    refused = plan_on(node("h100", "H100-80"), LLAMA_70B, "cpu", backend="vllm").refused
    assert "GiB per GPU at TP1" in refused[0].reason


def test_a_model_of_unknown_size_may_offload_without_limits(tmp_path: Path) -> None:
    """The work of a model of an unknown family has the permission without sizes, and none without the key."""
    (tmp_path / "zamba").mkdir()
    (tmp_path / "zamba" / "config.json").write_text('{"model_type": "zamba2"}')
    complete(tmp_path / "zamba")
    h100 = node("h100", "H100-80")
    assert evaluation(plan_on(h100, 'mine"\npath = "zamba', "cpu")).offload == Offload(to="cpu")
    assert evaluation(plan_on(h100, 'mine"\npath = "zamba', "")).offload == Offload()


def test_offloading_changes_no_address() -> None:
    """Responses are the same with and without offloading."""
    plain = evaluation(plan_on(node("h100", "H100-80", gpus=4), LLAMA_70B, ""))
    offloading = evaluation(plan_on(node("h100", "H100-80"), LLAMA_70B, "cpu"))
    assert offloading.offload != plain.offload
    assert offloading.address == plain.address


def test_float32_takes_twice_the_memory() -> None:
    """Weights in memory have the type of the computation, not that of the checkpoint."""
    classes = node("h100", "H100-80")
    half = plan_on(classes, LLAMA_70B, "cpu", batch=1)
    single = plan_on(classes, LLAMA_70B, "cpu", scheme="fp32", batch=1)
    totals = [unit.offloaded.total_bytes for plan in (half, single) for unit in plan.units if unit.offloaded]
    assert totals[1] == 2 * totals[0]
