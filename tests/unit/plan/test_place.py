"""Placement: the fewest GPUs of a class with the kernels. A refusal has numbers and a suggestion."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcq.api import Run
from hpcq.catalog.models import find_model_shape, model_ids
from hpcq.catalog.schemes import find_scheme
from hpcq.cli.formatting import plan_lines
from hpcq.core.errors import ManifestError
from hpcq.core.work_records import Calibration
from hpcq.manifest import load, resolve
from hpcq.manifest.profiles import GpuClass, Profile
from hpcq.plan.memory.gpu_memory import MemoryDemand
from hpcq.plan.memory.weights import GIB
from hpcq.plan.placement.candidates import PlacementError, place_evaluation, place_merge, place_quantization
from hpcq.plan.placement.requirements import EvaluationRequirements
from hpcq.plan.placement.suggestions import suggest
from hpcq.plan.plan_json import plan_document
from hpcq.plan.planner import make_plan
from hpcq.plan.schedule.resources import unit_memory_gib
from hpcq.plan.units import Plan, Shape
from tests.checkpoint_files import complete

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
LLAMA_70B = "meta-llama/Llama-3.1-70B-Instruct"
LLAMA_405B = "meta-llama/Llama-3.1-405B-Instruct"
PlanOf = Callable[..., Plan]
CALIBRATION = Calibration(digest=None, samples=128, sequence_length=2048)
GPUS = {"h100": "H100-80", "a100": "A100-80", "ada": "RTX6000Ada-48", "a6000": "A6000-48", "b200": "B200-180"}


def cluster(*names: str, nodes: int = 1, gpus_per_node: int = 4, memory_gib: float = 2000) -> Profile:
    """Return a cluster with classes of these names, equal except for the GPU."""
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
    """Return the cluster with an additional class that only quantizes."""
    offer = cluster(name).gpu_classes[name].model_copy(update={"roles": ("quantize",)})
    return profile.model_copy(update={"gpu_classes": {**profile.gpu_classes, name: offer}})


def requirements(model: str, scheme: str, backend: str = "vllm", **demand: int) -> EvaluationRequirements:
    """Return the requirements of an evaluation of a model and scheme in the catalog."""
    found = find_scheme(scheme)
    assert found
    return EvaluationRequirements(
        model=find_model_shape(model), scheme=found, backend=backend, demand=MemoryDemand(**demand)
    )


def refusal(profile: Profile, evaluation: EvaluationRequirements) -> tuple[str, str]:
    """Return why the evaluation cannot be placed, and the suggestion."""
    with pytest.raises(PlacementError) as caught:
        place_evaluation(profile, evaluation)
    on_accelerate = replace(evaluation, backend="accelerate", demand=MemoryDemand(sequences=1))
    return str(caught.value), suggest(profile, evaluation, CALIBRATION, on_accelerate)


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
    """Ties follow the profile's order. Tensor parallel is used in a node, pipeline parallel across nodes."""
    assert place_evaluation(profile, requirements(model, scheme, length=2048)).shape == shape


def test_nodes_are_used_in_part_if_all_of_their_gpus_do_not_divide_a_model() -> None:
    """Vicuna-33B has 52 heads: with a large KV cache, it takes four of eight GPUs of 48 GB on each of two nodes."""
    evaluation = requirements("lmsys/vicuna-33b-v1.3", "bf16", sequences=32, length=2048)
    shape = place_evaluation(cluster("a6000", nodes=4, gpus_per_node=8), evaluation).shape
    assert (shape.nodes, shape.gpus_per_node, shape.tensor_parallel, shape.pipeline_parallel) == (2, 4, 4, 2)


def test_a_class_that_multiplies_fp8_comes_before_one_that_does_not() -> None:
    """Two Ada GPUs are preferred to one A100, which would compute W8A16. If the A100 is the only class, it is used."""
    evaluation = requirements("lmsys/vicuna-33b-v1.3", "fp8", length=2048)
    assert place_evaluation(cluster("a100", "ada"), evaluation).shape.gpu_class == "ada"
    alone = place_evaluation(cluster("a100"), evaluation)
    assert alone.shape == Shape(gpu_class="a100", gpus_per_node=1)
    assert alone.kernel
    assert not alone.kernel.matches_scheme


def test_an_option_selects_a_kernel_that_computes_the_scheme() -> None:
    """'triton' places INT8 on Blackwell; 'emulation' computes NVFP4 as defined on Hopper, and does not change INT4."""
    for scheme, option, gpu, name in (
        ("smoothquant-w8a8", "triton", "b200", "Triton INT8"),
        ("nvfp4", "emulation", "h100", "emulation of NVFP4"),
        ("nvfp4", None, "h100", "Marlin, weight-only"),
        ("gptq-w4a16", "emulation", "h100", "Marlin; Machete on Hopper"),
    ):
        evaluation = replace(requirements(LLAMA_8B, scheme), linear_backend=option)
        kernel = place_evaluation(cluster(gpu), evaluation).kernel
        assert kernel
        assert kernel.name == name
        assert kernel.matches_scheme == (name != "Marlin, weight-only")


@pytest.mark.parametrize(
    ("profile", "evaluation", "reason", "suggestion"),
    [
        (
            cluster("a6000", "h100", gpus_per_node=8),
            requirements(LLAMA_405B, "bf16"),
            (
                "needs 103.4 GiB per GPU at TP8 on h100, which has 73.3;"
                " needs 102.2 GiB per GPU at TP8 on a6000, which has 41.4"
            ),
            "fp8 or 1 more node of h100 (nodes = 2)",
        ),
        (
            with_quantizing("h100", cluster("a6000")),
            requirements(LLAMA_405B, "gptq-w4a16"),
            "needs 59.9 GiB per GPU at TP4 on a6000, which has 41.4",
            "1 more node of a6000 (nodes = 2)",
        ),
        (
            cluster("a6000"),
            requirements(LLAMA_70B, "bf16", sequences=1, length=131072),
            "needs 48.6 GiB per GPU at TP4 on a6000, which has 41.4",
            "gptq-w8a16 or 1 more node of a6000 (nodes = 2) or evaluate.max_length = 32768",
        ),
        (
            cluster("b200"),
            requirements(LLAMA_8B, "smoothquant-w8a8"),
            (
                "vLLM 0.32 does not compute int8 weights with int8 activations on b200 (10.0): it does so from compute"
                " capability 8.0 to below 10.0, or from compute capability 8.0 with evaluate.engine.linear_backend ="
                " 'triton'"
            ),
            "evaluate.engine.linear_backend = 'triton' or fp8",
        ),
        (
            cluster("h100"),
            requirements("Qwen/Qwen-7B-Chat", "bf16"),
            "vLLM 0.32 does not support QWenLMHeadModel",
            "evaluate.backend = 'accelerate'",
        ),
        (
            cluster("a6000"),
            requirements(LLAMA_405B, "bf16", "accelerate", sequences=1),
            "needs 198.0 GiB per GPU with layers over 4 on a6000, which has 41.4",
            "evaluate.offload = 'cpu'",
        ),
        (
            cluster("cpu", memory_gib=64),
            requirements(LLAMA_70B, "bf16", "accelerate"),
            "needs 131.4 GiB of a node's memory on cpu, which has 64.0",
            "a GPU class with more memory, or with nodes that have more",
        ),
    ],
    ids=["bf16", "w4a16", "length", "kernel", "architecture", "accelerate", "cpu"],
)
def test_a_refusal_has_numbers_and_a_suggestion(
    profile: Profile, evaluation: EvaluationRequirements, reason: str, suggestion: str
) -> None:
    """The nearest class comes first. Every suggestion was tried and is enough alone."""
    assert refusal(profile, evaluation) == (reason, suggestion)


def test_a_requested_number_of_gpus_is_used() -> None:
    """With tensor_parallel_size, the unit takes that many GPUs of a node, or it is refused."""
    for tensor in (2, 4):
        evaluation = requirements(LLAMA_8B, "bf16")
        placed = place_evaluation(cluster("h100"), replace(evaluation, tensor_parallel=tensor))
        assert placed.shape.gpus_per_node == placed.shape.tensor_parallel == tensor
    with pytest.raises(PlacementError, match="8 GPUs do not fit on one node"):
        place_evaluation(cluster("h100"), replace(requirements(LLAMA_8B, "bf16"), tensor_parallel=8))


@pytest.mark.parametrize(
    ("parallelism", "shape"),
    [
        ({"tensor_parallel": 8}, Shape(gpu_class="h100", nodes=2, gpus_per_node=4, tensor_parallel=8)),
        ({"pipeline_parallel": 2}, Shape(gpu_class="h100", gpus_per_node=2, pipeline_parallel=2)),
        (
            {"tensor_parallel": 2, "pipeline_parallel": 2},
            Shape(gpu_class="h100", gpus_per_node=4, tensor_parallel=2, pipeline_parallel=2),
        ),
        (
            {"tensor_parallel": 4, "pipeline_parallel": 2},
            Shape(gpu_class="h100", nodes=2, gpus_per_node=4, tensor_parallel=4, pipeline_parallel=2),
        ),
    ],
)
def test_a_requested_parallelism_takes_the_fewest_nodes(parallelism: dict[str, int], shape: Shape) -> None:
    """Tensor parallel across nodes and pipeline parallel inside a node are used only if the manifest requests them."""
    evaluation = replace(requirements(LLAMA_8B, "bf16"), **parallelism)
    assert place_evaluation(cluster("h100", nodes=2), evaluation).shape == shape
    unsized = replace(evaluation, model=None)
    assert place_evaluation(cluster("h100", nodes=2), unsized).shape == shape


def test_a_requested_parallelism_that_does_not_fit_evenly_is_refused() -> None:
    """Five stages cannot be distributed evenly over two nodes, but over five."""
    evaluation = replace(requirements(LLAMA_8B, "bf16"), pipeline_parallel=5)
    reason, suggestion = refusal(cluster("h100", nodes=2), evaluation)
    assert reason == "cannot be split on h100: 5 GPUs do not fit evenly on up to 2 nodes"
    assert suggestion == "remove evaluate.engine.pipeline_parallel_size or 3 more nodes of h100 (nodes = 5)"


def test_transformers_decompresses() -> None:
    """With accelerate, a 4-bit checkpoint takes the GPUs of its base model, distributed by layers."""
    profile = cluster("a100")
    shapes = [
        place_evaluation(profile, requirements(LLAMA_70B, scheme, "accelerate")).shape
        for scheme in ("bf16", "gptq-w4a16")
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
    """A placement fits the class's nodes, GPUs and memory, and uses all GPUs of its shape."""
    profile = cluster(*names, nodes=nodes, gpus_per_node=gpus_per_node)
    try:
        placed = place_evaluation(profile, requirements(model, scheme, backend))
    except PlacementError:
        return
    shape, offer = placed.shape, profile.gpu_classes[placed.shape.gpu_class]
    assert offer.gpu_spec
    assert shape.nodes <= offer.nodes
    assert shape.gpus_per_node <= offer.gpus_per_node
    assert placed.gpu_bytes
    assert placed.gpu_bytes <= offer.gpu_spec.memory_gib * GIB
    if backend == "vllm":
        assert shape.tensor_parallel * shape.pipeline_parallel == shape.gpus
    else:
        assert (shape.nodes, shape.tensor_parallel, shape.pipeline_parallel) == (1, 1, 1)


@pytest.mark.parametrize("option", ["mem", "mem-per-cpu", "mem-per-gpu", "none"])
def test_quantizing_takes_more_gpus_only_if_memory_is_given_by_gpu(option: str) -> None:
    """405B's 756 GiB are requested with one GPU, or are the share of four of eight GPUs. 500 GiB are refused."""
    scheme = find_scheme("gptq-w4a16")
    assert scheme
    model = find_model_shape(LLAMA_405B)
    large = cluster("h100", gpus_per_node=8)
    offer = large.gpu_classes["h100"].model_copy(update={"memory_option": option})
    placed = place_quantization(large.model_copy(update={"gpu_classes": {"h100": offer}}), model, scheme, CALIBRATION)
    own = Shape(gpu_class="h100", gpus_per_node=1, host_memory_gib=812)
    assert placed.shape == (own if option in ("mem", "mem-per-cpu") else Shape(gpu_class="h100", gpus_per_node=4))
    with pytest.raises(PlacementError) as caught:
        place_quantization(cluster("h100", "a6000", memory_gib=500), model, scheme, CALIBRATION)
    assert str(caught.value) == (
        "quantizing needs 47.9 GiB on one GPU of a6000, which has 42.7;"
        " quantizing needs 811.6 GiB of a node's memory on h100, which has 500.0"
    )


def test_one_class_serves_quantizations_with_much_memory_and_evaluations_with_little() -> None:
    """`memory_gib_per_unit` is what units request that need no more; a quantization requests what it needs."""
    scheme, model = find_scheme("gptq-w4a16"), find_model_shape(LLAMA_405B)
    assert scheme
    large = cluster("h100", gpus_per_node=8)
    offer = large.gpu_classes["h100"].model_copy(update={"memory_gib_per_unit": 64})
    profile = large.model_copy(update={"gpu_classes": {"h100": offer}})
    quantization = place_quantization(profile, model, scheme, CALIBRATION).shape
    assert (quantization.gpus_per_node, unit_memory_gib(profile, quantization)) == (1, 812)
    assert unit_memory_gib(profile, Shape(gpu_class="h100", gpus_per_node=4)) == 64


def test_a_merge_needs_no_gpu() -> None:
    """It runs on a class without GPUs if there is one, or else on CPUs of another class."""
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
    """Return a function that plans the manifest with overrides."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path / "cache"))
    Path("c.toml").write_text(PROFILE, encoding="utf-8")
    Path("m.toml").write_text(MANIFEST, encoding="utf-8")
    return lambda *options: make_plan(resolve(load(Path("m.toml"), options)))


def test_a_plan_notes_how_vllm_computes_fp8_on_ampere(plan_of: PlanOf) -> None:
    """The note is printed and is in the plan's document, from which the report takes it."""
    plan = plan_of()
    [note] = plan_document(plan, (), {})["notes"]
    assert note.startswith("fp8 on a6000 (vLLM 0.32): below compute capability 8.9 no GPU multiplies FP8: ")
    assert note.endswith("so scores are those of W8A16.")
    assert f"note: {note}" in plan_lines(Run("m.toml").plan())


def test_the_whole_context_must_fit_unless_a_length_is_given(plan_of: PlanOf) -> None:
    """70B in BF16 on four GPUs of 48 GB is refused with 131072 tokens, and planned with the suggested 32768."""
    plan = plan_of("schemes.use=['bf16']")
    [refused] = plan.refused
    assert "needs 48.6 GiB per GPU at TP4 on a6000, which has 41.4" in refused.reason
    assert refused.suggestion == "gptq-w8a16 or 1 more node of a6000 (nodes = 2) or evaluate.max_length = 32768"
    shorter = plan_of("schemes.use=['bf16']", "evaluate.max_length=32768")
    unit = plan_document(shorter, (), {})["units"][0]
    assert (unit["tensor_parallel"], unit["kernel"]) == (4, "unquantized")
    assert sum(unit["memory_gib"].values()) == pytest.approx(unit["memory_gib_per_gpu"], abs=0.03)


def test_the_plan_uses_the_engine_options(plan_of: PlanOf) -> None:
    """A smaller gpu_memory_utilization, a larger KV cache or larger batches make the plan refuse a model."""
    length = "evaluate.max_length=4096"
    for option in ("gpu_memory_utilization=0.8", "kv_cache_gib=8", "max_num_batched_tokens=65536"):
        plan = plan_of("schemes.use=['bf16']", length, f"evaluate.engine.{option}")
        assert len(plan.refused) == 1


def test_a_model_of_unknown_size_is_planned_with_a_note(plan_of: PlanOf, tmp_path: Path) -> None:
    """A model of an unknown family in a local folder gets one GPU, no memory estimate, and the reason."""
    (tmp_path / "zamba").mkdir()
    (tmp_path / "zamba" / "config.json").write_text('{"model_type": "zamba2", "architectures": ["Zamba2ForCausalLM"]}')
    complete(tmp_path / "zamba")
    plan = plan_of("models.0.path=zamba", "schemes.use=['bf16']", "models.0.id=some/hybrid")
    assert plan.units[0].shape == Shape(gpu_class="a6000", gpus_per_node=1)
    assert plan.units[0].memory_gib_per_gpu is None
    [note] = plan.notes
    assert note == (
        "some/hybrid: one GPU is planned without a memory estimate, because its family is not in hpcq's table"
        " (model_type = 'zamba2')."
    )


def test_a_scheme_that_cannot_quantize_an_unknown_family_is_refused(plan_of: PlanOf, tmp_path: Path) -> None:
    """The configuration of a family without known sizes is checked, too: the quantization would fail in its job."""
    (tmp_path / "seeing").mkdir()
    (tmp_path / "seeing" / "config.json").write_text(
        '{"model_type": "new", "architectures": ["NewForCausalLM"], "vision_config": {"hidden_size": 8}}'
    )
    with pytest.raises(ManifestError, match=r"'fp8-dynamic' cannot quantize seeing: it is not a text-only model"):
        plan_of("models.0.path=seeing", "schemes.use=['fp8-dynamic']", "models.0.id=some/seeing")


def test_files_that_contradict_their_configuration_are_noted(plan_of: PlanOf, tmp_path: Path) -> None:
    """A local checkpoint with more bytes than its configuration describes, and one that also sees, have a note each."""
    sizes = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    text = sizes | {"num_attention_heads": 4, "vocab_size": 128, "dtype": "bfloat16"}
    text["architectures"] = ["LlamaForCausalLM"]
    seeing = {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": text,
        "vision_config": {},
    }
    notes = []
    for name, config in (("large", text), ("seeing", seeing)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        index = {"metadata": {"total_size": 200000}, "weight_map": {}}
        (tmp_path / name / "model.safetensors.index.json").write_text(json.dumps(index))
        complete(tmp_path / name)
        plan = plan_of(f"models.0.path={name}", "schemes.use=['bf16']", f"models.0.id=some/{name}")
        notes += plan.notes
    assert notes == [
        (
            "some/large: its safetensors files have 200,000 bytes of tensors, but its config.json describes 115,072;"
            " the plan uses config.json."
        ),
        "some/seeing: planned without the parts that are not for text (vision_config).",
    ]
