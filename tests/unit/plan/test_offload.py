"""Weights beyond what GPUs hold: only where that is allowed and nothing holds them, least first, and reckoned with."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.core.work import EvaluateWork, Kind, Offload
from hpcq.launch.from_plan import order_of
from hpcq.manifest import load, resolve
from hpcq.plan.arrays import make_arrays
from hpcq.plan.memory.weights import GIB
from hpcq.plan.plan import make_plan
from hpcq.plan.plan_json import plan_document
from hpcq.plan.units import Plan

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
LLAMA_70B = "meta-llama/Llama-3.1-70B-Instruct"
LLAMA_405B = "meta-llama/Llama-3.1-405B-Instruct"


def node(name: str, gpu: str | None, gpus: int = 1, memory_gib: int = 500, more: str = "") -> str:
    """A class of such nodes."""
    kind = f'gpu = "{gpu}"\ngpus_per_node = {gpus}\n' if gpu else ""
    return f"[gpu_classes.{name}]\n{kind}cpus_per_node = 64\nmemory_gib = {memory_gib}\n{more}\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path / "cache"))


def plan_on(
    classes: str, model: str, offload: str, *, backend: str = "accelerate", scheme: str = "bf16", batch: int = 8
) -> Plan:
    """The plan of one variant on a cluster with these classes, where jobs may take a year."""
    head = 'name = "c"\nscheduler = "slurm"\nslurm.time_limit_minutes = 525600\n'
    Path("c.toml").write_text(head + classes)
    Path("m.toml").write_text(
        f'[run]\nname = "x"\n[cluster]\nprofile = "c.toml"\n[[models]]\nid = "{model}"\n[schemes]\nuse = ["{scheme}"]\n'
        f'[tasks]\nuse = ["arc_challenge"]\n[evaluate]\nbackend = "{backend}"\nbatch_size = {batch}\n'
        + (f'offload = "{offload}"\n' if offload else "")
    )
    return make_plan(resolve(load(Path("m.toml"))))


def evaluation(plan: Plan) -> EvaluateWork:
    """The work of the one evaluation."""
    [work] = [unit.work for unit in plan.units if isinstance(unit.work, EvaluateWork)]
    return work


def host_gib(plan: Plan) -> dict[Kind, float | None]:
    """By kind of work, what its jobs ask Slurm for."""
    profile = resolve(load(Path("m.toml"))).profile
    return {array.kind: order_of("x", array, profile).memory_gib for array in make_arrays(plan.units, profile)}


def test_70b_on_one_h100_keeps_the_rest_in_the_hosts_memory() -> None:
    """Of 131.4 GiB two fifths stay on the GPU; the plan says so, and tells the worker exactly."""
    plan = plan_on(node("h100", "H100-80", gpus=4), LLAMA_405B, "cpu", batch=1)
    assert "also with evaluate.offload = 'cpu'" in plan.refused[0].reason
    plan = plan_on(node("h100", "H100-80"), LLAMA_70B, "cpu")
    [unit] = [unit for unit in plan.units if unit.kind is Kind.EVALUATE]
    assert unit.offloaded
    on_gpu = unit.offloaded.total - unit.offloaded.host
    assert unit.offloaded.total == pytest.approx(131.4 * GIB, rel=0.001)
    assert 50 * GIB < on_gpu < 60 * GIB
    assert unit.memory_gib_per_gpu
    assert on_gpu / GIB < unit.memory_gib_per_gpu <= 73.3
    work = evaluation(plan)
    assert work.offload.to == "cpu"
    assert work.offload.host_gib == pytest.approx(unit.offloaded.host / GIB, abs=4)
    assert host_gib(plan)[Kind.EVALUATE] == 500  # all of the node is its share: it has one GPU
    [note] = [note for note in plan.notes if "host's memory" in note]
    assert " on h100: 75.3 GiB of its weights in the host's memory are brought to the GPU for each pass" in note
    assert note.endswith(", which is slow, because no class holds all 131.4 GiB.")
    document = plan_document(plan, (), {unit.id: "waiting" for unit in plan.units})["units"][0]
    assert document["offloaded_gib"] == {"host": pytest.approx(unit.offloaded.host / GIB, abs=0.01), "disk": 0.0}


def test_a_job_asks_for_the_memory_that_it_needs_and_no_more() -> None:
    """On GPUs their share, on cores what weights and a process take; the profile is not overruled."""
    cpus = node("cpu", None, memory_gib=512)
    assert host_gib(plan_on(cpus, LLAMA_70B, "disk"))[Kind.EVALUATE] is None  # the node holds it: Slurm's default
    plan = plan_on(node("l4", "L4-24", gpus=2, memory_gib=128), LLAMA_70B, "cpu", batch=1)
    [unit] = [unit for unit in plan.units if unit.kind is Kind.EVALUATE]
    assert unit.offloaded
    assert unit.shape.gpus_per_node == 2
    assert unit.offloaded.host / GIB < unit.offloaded.host_asked_gib <= 128
    assert host_gib(plan)[Kind.EVALUATE] == 128
    small = node("l4", "L4-24", gpus=2, memory_gib=256, more="memory_gib_per_unit = 64")
    assert plan_on(small, LLAMA_70B, "cpu", batch=1).refused


def test_weights_stay_on_gpus_wherever_a_class_holds_them() -> None:
    """A permission is not a wish: the larger class is taken, and its worker may not offload."""
    classes = node("small", "A10-24") + node("large", "H100-80", gpus=4)
    plan = plan_on(classes, LLAMA_70B, "disk")
    assert [unit.shape.gpu_class for unit in plan.units if unit.kind is Kind.EVALUATE] == ["large"]
    assert evaluation(plan).offload == Offload()
    assert not [note for note in plan.notes if "weights" in note]


def test_the_place_that_offloads_least_is_taken() -> None:
    """All GPUs of the class with the most memory, however many GPU-hours that takes."""
    classes = node("small", "A6000-48", gpus=2, memory_gib=1000) + node("large", "H100-80", gpus=2, memory_gib=1000)
    plan = plan_on(classes, LLAMA_405B, "cpu")
    [unit] = [unit for unit in plan.units if unit.kind is Kind.EVALUATE]
    assert (unit.shape.gpu_class, unit.shape.gpus_per_node) == ("large", 2)


def test_a_disk_takes_what_the_host_has_no_room_for() -> None:
    """On a small host, and on a node without GPUs, which has nothing to offload to but a disk."""
    plan = plan_on(node("h100", "H100-80", memory_gib=64), LLAMA_70B, "disk")
    work = evaluation(plan)
    assert work.offload.to == "disk"
    [note] = [note for note in plan.notes if "disk" in note]
    assert "GiB of its weights in the host's memory and " in note
    cpus = node("cpu", None, memory_gib=64)
    assert "evaluate.offload" not in plan_on(cpus, LLAMA_70B, "none").refused[0].cure
    plan = plan_on(cpus, LLAMA_70B, "disk")
    assert evaluation(plan).offload.gpu_gib == ()
    [note] = [note for note in plan.notes if "disk" in note]
    assert "brought to the memory for each pass" in note
    assert host_gib(plan)[Kind.EVALUATE] == pytest.approx(64, abs=1)


def test_a_quantized_checkpoint_is_not_put_on_disk() -> None:
    """It is decompressed in memory: with 'disk' it may use the host's, and no more."""
    makers = node("maker", "H200-141", gpus=8, memory_gib=2000, more='roles = ["quantize", "merge"]')
    small = node("h100", "H100-80", memory_gib=64)
    assert plan_on(makers + small, LLAMA_70B, "disk", scheme="fp8").refused
    plan = plan_on(makers + node("h100", "H100-80", memory_gib=256), LLAMA_70B, "disk", scheme="fp8")
    assert evaluation(plan).offload.to == "cpu"


def test_bringing_weights_takes_time_for_each_pass() -> None:
    """Four fifths of 70B beside a small GPU: the same tokens take several times what they take on GPUs alone."""
    fits = plan_on(node("a100", "A100-40", gpus=5), LLAMA_70B, "cpu")
    offloads = plan_on(node("a100", "A100-40", gpus=1), LLAMA_70B, "cpu")
    disk = plan_on(node("a100", "A100-40", gpus=1, memory_gib=32), LLAMA_70B, "disk")
    works = [unit.reckoned.work for plan in (fits, offloads, disk) for unit in plan.units[:1] if unit.reckoned]
    assert evaluation(fits).offload == Offload()
    assert works[0] * 1.5 < works[1]
    assert works[1] * 2 < works[2]


def test_offloading_is_named_as_a_cure_where_it_is_enough() -> None:
    """For accelerate alone; for vLLM, which cannot, with the back end that can."""
    h100 = node("h100", "H100-80")
    assert plan_on(h100, LLAMA_70B, "").refused[0].cure == "evaluate.offload = 'cpu'"
    few = node("h100", "H100-80", memory_gib=64)
    assert plan_on(few, LLAMA_70B, "cpu").refused[0].cure == "evaluate.offload = 'disk'"
    assert "more memory" in plan_on(few, LLAMA_70B, "").refused[0].cure


def test_vllm_offloads_nothing_and_its_fallback_does() -> None:
    """Where vLLM has no code for a model and the GPU no room; and not where it has, whatever the key says."""
    plan = plan_on(node("t4", "V100-16", memory_gib=64), "Qwen/Qwen-7B-Chat", "cpu", backend="vllm", batch=1)
    assert evaluation(plan).backend == "accelerate"
    assert evaluation(plan).offload.to == "cpu"
    refused = plan_on(node("h100", "H100-80"), LLAMA_70B, "cpu", backend="vllm").refused
    assert "GiB a GPU at TP1" in refused[0].reason


def test_a_model_of_unknown_sizes_may_offload_as_it_finds_room(tmp_path: Path) -> None:
    """A mixture of experts gets the permission without figures; without the key, none."""
    (tmp_path / "moe").mkdir()
    (tmp_path / "moe" / "config.json").write_text('{"num_local_experts": 8}')
    h100 = node("h100", "H100-80")
    assert evaluation(plan_on(h100, 'mine"\npath = "moe', "cpu")).offload == Offload(to="cpu")
    assert evaluation(plan_on(h100, 'mine"\npath = "moe', "")).offload == Offload()


def test_offloading_changes_no_address() -> None:
    """Responses from a run with it are those of a run without."""
    plain = evaluation(plan_on(node("h100", "H100-80", gpus=4), LLAMA_70B, ""))
    offloading = evaluation(plan_on(node("h100", "H100-80"), LLAMA_70B, "cpu"))
    assert offloading.offload != plain.offload
    assert offloading.address == plain.address


def test_float32_takes_twice_the_room() -> None:
    """What is held is what is computed in, not what the checkpoint stores."""
    classes = node("h100", "H100-80")
    half = plan_on(classes, LLAMA_70B, "cpu", batch=1)
    single = plan_on(classes, LLAMA_70B, "cpu", scheme="fp32", batch=1)
    totals = [unit.offloaded.total for plan in (half, single) for unit in plan.units if unit.offloaded]
    assert totals[1] == 2 * totals[0]
