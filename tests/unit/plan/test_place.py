"""Where units go: the fewest GPUs of a class with the kernels; what fits nowhere is refused with numbers and a cure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcq import api
from hpcq.catalog.models import find_shape, model_ids
from hpcq.catalog.schemes import find_scheme
from hpcq.cli.formatting import plan_lines
from hpcq.core.work import Calibration
from hpcq.manifest import load, resolve
from hpcq.manifest.profiles import GpuClass, Profile
from hpcq.plan.memory.gpu_memory import Demand
from hpcq.plan.memory.weights import GIB
from hpcq.plan.placement.place import place_evaluation, place_merge, place_quantization
from hpcq.plan.placement.records import CannotPlace, Evaluation
from hpcq.plan.placement.suggestions import alternatives
from hpcq.plan.plan import make_plan
from hpcq.plan.plan_json import plan_document
from hpcq.plan.units import Plan, Shape

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
LLAMA_70B = "meta-llama/Llama-3.1-70B-Instruct"
LLAMA_405B = "meta-llama/Llama-3.1-405B-Instruct"
PlanOf = Callable[..., Plan]
CALIBRATION = Calibration(digest=None, samples=128, sequence_length=2048)
GPUS = {"h100": "H100-80", "a100": "A100-80", "ada": "RTX6000Ada-48", "a6000": "A6000-48", "b200": "B200-180"}


def cluster(*names: str, nodes: int = 1, gpus_per_node: int = 4, memory_gib: float = 2000) -> Profile:
    """A cluster with classes of these names, alike but for the GPU."""
    classes = {
        name: GpuClass(
            gpu=GPUS.get(name), nodes=nodes, gpus_per_node=gpus_per_node, cpus_per_node=64, memory_gib=memory_gib
        )
        if name in GPUS
        else GpuClass(cpus_per_node=64, memory_gib=memory_gib)
        for name in names
    }
    return Profile(name="a cluster", scheduler="slurm", gpu_classes=classes)


def with_quantizing(name: str, profile: Profile) -> Profile:
    """The cluster, and a class that quantizes and does no more."""
    offer = cluster(name).gpu_classes[name].model_copy(update={"roles": ("quantize",)})
    return profile.model_copy(update={"gpu_classes": {**profile.gpu_classes, name: offer}})


def wanted(model: str, scheme: str, backend: str = "vllm", **demand: int) -> Evaluation:
    """An evaluation of a model and scheme that the catalog has."""
    found = find_scheme(scheme)
    assert found
    return Evaluation(model=find_shape(model), scheme=found, backend=backend, demand=Demand(**demand))


def refusal(profile: Profile, evaluation: Evaluation) -> tuple[str, str]:
    """Why it cannot be placed, and what to try."""
    with pytest.raises(CannotPlace) as caught:
        place_evaluation(profile, evaluation)
    slower = replace(evaluation, backend="accelerate", demand=Demand(sequences=1))
    return str(caught.value), alternatives(profile, evaluation, CALIBRATION, slower)


@pytest.mark.parametrize(
    ("model", "scheme", "profile", "shape"),
    [
        (LLAMA_8B, "bf16", cluster("a100", "h100"), Shape(gpu_class="a100", gpus_per_node=1)),
        (LLAMA_70B, "bf16", cluster("a6000", "b200"), Shape(gpu_class="b200", gpus_per_node=1)),
        (LLAMA_70B, "bf16", cluster("a6000"), Shape(gpu_class="a6000", gpus_per_node=4, tensor_parallel=4)),
        (
            LLAMA_405B,
            "bf16",
            cluster("h100", nodes=2, gpus_per_node=8),
            Shape(gpu_class="h100", nodes=2, gpus_per_node=8, tensor_parallel=8, pipeline_parallel=2),
        ),
        (
            "lmsys/vicuna-33b-v1.3",
            "fp8",
            cluster("ada", gpus_per_node=8),
            Shape(gpu_class="ada", gpus_per_node=2, tensor_parallel=2),
        ),
    ],
)
def test_the_fewest_gpus_are_taken(model: str, scheme: str, profile: Profile, shape: Shape) -> None:
    """In the profile's order; tensor parallel in a node, pipeline parallel across nodes."""
    assert place_evaluation(profile, wanted(model, scheme, length=2048)).shape == shape


def test_nodes_are_used_in_part_where_all_of_their_gpus_do_not_divide_a_model() -> None:
    """Vicuna-33B has 52 heads: on cards of 48 GB with a large KV cache it takes four of the eight in two nodes each."""
    evaluation = wanted("lmsys/vicuna-33b-v1.3", "bf16", sequences=32, length=2048)
    shape = place_evaluation(cluster("a6000", nodes=4, gpus_per_node=8), evaluation).shape
    assert (shape.nodes, shape.gpus_per_node, shape.tensor_parallel, shape.pipeline_parallel) == (2, 4, 4, 2)


def test_a_class_that_multiplies_fp8_comes_before_one_that_does_not() -> None:
    """Two Ada cards are taken before one A100, which would compute W8A16; alone, the A100 is taken and says so."""
    evaluation = wanted("lmsys/vicuna-33b-v1.3", "fp8", length=2048)
    assert place_evaluation(cluster("a100", "ada"), evaluation).shape.gpu_class == "ada"
    alone = place_evaluation(cluster("a100"), evaluation)
    assert alone.shape == Shape(gpu_class="a100", gpus_per_node=1)
    assert alone.kernel
    assert not alone.kernel.faithful


@pytest.mark.parametrize(
    ("profile", "evaluation", "reason", "cure"),
    [
        (
            cluster("a6000", "h100", gpus_per_node=8),
            wanted(LLAMA_405B, "bf16"),
            (
                "needs 103.4 GiB a GPU at TP8 on h100, which has 73.3;"
                " needs 102.2 GiB a GPU at TP8 on a6000, which has 41.4"
            ),
            "fp8 or 1 more node of h100 (nodes = 2)",
        ),
        (
            with_quantizing("h100", cluster("a6000")),
            wanted(LLAMA_405B, "gptq-w4a16"),
            "needs 59.9 GiB a GPU at TP4 on a6000, which has 41.4",
            "1 more node of a6000 (nodes = 2)",
        ),
        (
            cluster("a6000"),
            wanted(LLAMA_70B, "bf16", sequences=1, length=131072),
            "needs 48.6 GiB a GPU at TP4 on a6000, which has 41.4",
            "gptq-w8a16 or 1 more node of a6000 (nodes = 2) or evaluate.max_length = 32768",
        ),
        (
            cluster("b200"),
            wanted(LLAMA_8B, "smoothquant-w8a8"),
            (
                "vLLM 0.32 does not compute int8 weights with int8 activations on b200 (10.0): it does so from compute"
                " capability 8.0 to below 10.0"
            ),
            "fp8",
        ),
        (
            cluster("h100"),
            wanted("Qwen/Qwen-7B-Chat", "bf16"),
            "vLLM 0.32 has no QWenLMHeadModel",
            "evaluate.backend = 'accelerate'",
        ),
        (
            cluster("a6000"),
            wanted(LLAMA_405B, "bf16", "accelerate", sequences=1),
            "needs 198.0 GiB a GPU with layers over 4 on a6000, which has 41.4",
            "evaluate.offload = 'cpu'",
        ),
        (
            cluster("cpu", memory_gib=64),
            wanted(LLAMA_70B, "bf16", "accelerate"),
            "needs 131.4 GiB of a node's memory on cpu, which has 64.0",
            "a GPU class with more memory, or with nodes that have more",
        ),
    ],
    ids=["bf16", "w4a16", "length", "kernel", "architecture", "accelerate", "cpu"],
)
def test_what_fits_nowhere_is_refused_with_numbers_and_a_cure(
    profile: Profile, evaluation: Evaluation, reason: str, cure: str
) -> None:
    """The nearest class first; every cure was tried and is enough alone."""
    assert refusal(profile, evaluation) == (reason, cure)


def test_a_stated_number_of_gpus_is_kept_to() -> None:
    """With tensor_parallel_size given, it is that many GPUs of a node, or a refusal."""
    for tensor in (2, 4):
        evaluation = wanted(LLAMA_8B, "bf16")
        placed = place_evaluation(cluster("h100"), Evaluation(**{**vars(evaluation), "tensor": tensor}))
        assert placed.shape.gpus_per_node == placed.shape.tensor_parallel == tensor
    with pytest.raises(CannotPlace, match="it has no 8 GPUs in a node"):
        place_evaluation(cluster("h100"), Evaluation(**{**vars(wanted(LLAMA_8B, "bf16")), "tensor": 8}))


@pytest.mark.parametrize(
    ("split", "shape"),
    [
        ({"tensor": 8}, Shape(gpu_class="h100", nodes=2, gpus_per_node=4, tensor_parallel=8)),
        ({"stages": 2}, Shape(gpu_class="h100", gpus_per_node=2, pipeline_parallel=2)),
        (
            {"tensor": 2, "stages": 2},
            Shape(gpu_class="h100", gpus_per_node=4, tensor_parallel=2, pipeline_parallel=2),
        ),
        (
            {"tensor": 4, "stages": 2},
            Shape(gpu_class="h100", nodes=2, gpus_per_node=4, tensor_parallel=4, pipeline_parallel=2),
        ),
    ],
)
def test_a_stated_split_takes_the_fewest_nodes_that_hold_it(split: dict[str, int], shape: Shape) -> None:
    """Matrices are shared across nodes, and layers inside one, only where the manifest says so."""
    evaluation = replace(wanted(LLAMA_8B, "bf16"), **split)
    assert place_evaluation(cluster("h100", nodes=2), evaluation).shape == shape
    unsized = replace(evaluation, model=None)
    assert place_evaluation(cluster("h100", nodes=2), unsized).shape == shape


def test_a_stated_split_that_no_nodes_hold_evenly_is_refused() -> None:
    """Five stages are no whole number for each of two nodes; it is for each of five."""
    evaluation = replace(wanted(LLAMA_8B, "bf16"), stages=5)
    reason, cure = refusal(cluster("h100", nodes=2), evaluation)
    assert reason == "cannot be split on h100: it has no 5 GPUs in 2 nodes, evenly"
    assert cure == "leave evaluate.engine.pipeline_parallel_size out or 3 more nodes of h100 (nodes = 5)"


def test_transformers_decompresses() -> None:
    """On accelerate a 4-bit checkpoint takes the GPUs of its base, spread by layers."""
    profile = cluster("a100")
    shapes = [
        place_evaluation(profile, wanted(LLAMA_70B, scheme, "accelerate")).shape for scheme in ("bf16", "gptq-w4a16")
    ]
    assert shapes[0] == shapes[1] == Shape(gpu_class="a100", gpus_per_node=3)


@given(
    st.sampled_from(model_ids()),
    st.sampled_from(["bf16", "fp8", "gptq-w8a16", "smoothquant-w8a8"]),
    st.sampled_from(["vllm", "accelerate", "synthetic"]),
    st.lists(st.sampled_from(sorted(GPUS)), min_size=1, max_size=3, unique=True),
    st.integers(1, 3),
    st.integers(1, 8),
)
def test_no_placement_exceeds_its_class(
    model: str, scheme: str, backend: str, names: list[str], nodes: int, gpus_per_node: int
) -> None:
    """Nodes, GPUs and memory are those that there are, and all GPUs of a shape are put to use."""
    profile = cluster(*names, nodes=nodes, gpus_per_node=gpus_per_node)
    try:
        placed = place_evaluation(profile, wanted(model, scheme, backend))
    except CannotPlace:
        return
    shape, offer = placed.shape, profile.gpu_classes[placed.shape.gpu_class]
    assert offer.device
    assert shape.nodes <= offer.nodes
    assert shape.gpus_per_node <= offer.gpus_per_node
    assert placed.gpu_bytes
    assert placed.gpu_bytes <= offer.device.memory_gib * GIB
    if backend == "vllm":
        assert shape.tensor_parallel * shape.pipeline_parallel == shape.gpus
    else:
        assert (shape.nodes, shape.tensor_parallel, shape.pipeline_parallel) == (1, 1, 1)


def test_quantizing_takes_the_gpus_whose_share_of_memory_holds_the_model() -> None:
    """405B's 756 GiB are four GPUs' share of 2000 GiB among eight; 500 GiB are not enough, and say so."""
    scheme = find_scheme("gptq-w4a16")
    assert scheme
    model = find_shape(LLAMA_405B)
    large = cluster("h100", gpus_per_node=8)
    assert place_quantization(large, model, scheme, CALIBRATION).shape == Shape(gpu_class="h100", gpus_per_node=4)
    with pytest.raises(CannotPlace) as caught:
        place_quantization(cluster("h100", "a6000", memory_gib=500), model, scheme, CALIBRATION)
    assert str(caught.value) == (
        "quantizing needs 47.9 GiB of one GPU on a6000, which has 42.7;"
        " quantizing needs 811.6 GiB of a node's memory on h100, which has 500.0"
    )


def test_a_merge_needs_no_gpu() -> None:
    """It goes to the cores of a class without GPUs where there is one, else to some core."""
    assert place_merge(cluster("h100", "cpu")) == Shape(gpu_class="cpu")
    assert place_merge(cluster("h100")) == Shape(gpu_class="h100")


MANIFEST = """
[run]
name = "r"
[cluster]
profile = "c.toml"
[[models]]
id = "meta-llama/Llama-3.1-70B-Instruct"
[schemes]
use = ["bf16", "fp8"]
[tasks]
use = ["arc_challenge"]
[evaluate]
backend = "vllm"
"""
PROFILE = """
name = "c"
scheduler = "slurm"
[gpu_classes.a6000]
gpu = "A6000-48"
gpus_per_node = 4
cpus_per_node = 32
memory_gib = 500
"""


@pytest.fixture
def plan_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlanOf:
    """A function that plans the manifest with options."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path / "cache"))
    Path("c.toml").write_text(PROFILE, encoding="utf-8")
    Path("m.toml").write_text(MANIFEST, encoding="utf-8")
    return lambda *options: make_plan(resolve(load(Path("m.toml"), options)))


def test_a_plan_says_what_vllm_makes_of_fp8_on_ampere(plan_of: PlanOf) -> None:
    """The note is printed, and is in the plan's document, which the report of the results takes its notes from."""
    plan = plan_of()
    [note] = plan_document(plan, (), {})["notes"]
    assert note.startswith("fp8 on a6000 (vLLM 0.32): below compute capability 8.9 nothing multiplies FP8: ")
    assert note.endswith("so scores are of W8A16.")
    assert f"note: {note}" in plan_lines(api.plan(Path("m.toml")))


def test_the_whole_context_must_fit_unless_a_length_is_given(plan_of: PlanOf) -> None:
    """70B in BF16 on four cards of 48 GB: refused with its 131072 tokens, planned with the 32768 that are proposed."""
    plan = plan_of("schemes.use=['bf16']")
    [refused] = plan.refused
    assert "needs 48.6 GiB a GPU at TP4 on a6000, which has 41.4" in refused.reason
    assert refused.cure == "gptq-w8a16 or 1 more node of a6000 (nodes = 2) or evaluate.max_length = 32768"
    shorter = plan_of("schemes.use=['bf16']", "evaluate.max_length=32768")
    unit = plan_document(shorter, (), {})["units"][0]
    assert (unit["tensor_parallel"], unit["kernel"]) == (4, "unquantized")
    assert sum(unit["memory_gib"].values()) == pytest.approx(unit["memory_gib_per_gpu"], abs=0.03)


def test_settings_of_the_engine_count(plan_of: PlanOf) -> None:
    """A smaller share of the memory, or a larger KV cache, is planned with."""
    length = "evaluate.max_length=4096"
    for option in ("gpu_memory_utilization=0.8", "kv_cache_gib=8", "max_num_batched_tokens=65536"):
        plan = plan_of("schemes.use=['bf16']", length, f"evaluate.engine.{option}")
        assert len(plan.refused) == 1


def test_a_model_that_cannot_be_sized_is_planned_with_a_note(plan_of: PlanOf, tmp_path: Path) -> None:
    """A mixture of experts on this file system gets one GPU, no figures, and the reason."""
    (tmp_path / "moe").mkdir()
    (tmp_path / "moe" / "config.json").write_text('{"num_local_experts": 8}')
    plan = plan_of("models.0.path=moe", "schemes.use=['bf16']", "models.0.id=some/mixture")
    assert plan.units[0].shape == Shape(gpu_class="a6000", gpus_per_node=1)
    assert plan.units[0].memory_gib_per_gpu is None
    [note] = plan.notes
    assert note == (
        "some/mixture: one GPU is planned and no memory reckoned, because its feed-forward layers are mixtures of"
        " experts (num_local_experts = 8)."
    )
