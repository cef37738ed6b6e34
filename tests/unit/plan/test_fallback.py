"""Backend of a variant: the manifest's own, or accelerate if that one has no code for the variant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcq.core.errors import ManifestError
from hpcq.core.work_records import EvaluateWork, UnitState
from hpcq.manifest import load, resolve
from hpcq.plan.plan_json import plan_document
from hpcq.plan.planner import make_plan
from hpcq.plan.units import Plan
from tests.checkpoint_files import complete

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
QWEN_MOE = "Qwen/Qwen3-235B-A22B"
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
        ("H100-80", "Qwen/Qwen-7B-Chat", "bf16", "vLLM 0.32 does not support QWenLMHeadModel"),
        ("V100-32", LLAMA, "gptq-w4a16", "vLLM 0.32 does not compute int4 weights with bf16 activations on gpu (7.0)"),
        ("B200-180", LLAMA, "smoothquant-w8a8", "vLLM 0.32 does not compute int8 weights with int8 activations on gpu"),
        ("none", QWEN_MOE, "fp8-dynamic", "fp8_e4m3 weights with fp8_e4m3 activations in experts on the CPUs of"),
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


def test_a_missing_kernel_is_explained_with_each_capability_once() -> None:
    """Two kernels for four-bit integers have the same requirement, which the sentence states once."""
    [refusal] = plan_on("none", LLAMA, "gptq-w4a16", fallback=False).refused
    assert refusal.reason.endswith("on the CPUs of gpu: it does so from compute capability 8.0.")


def test_without_fallback_it_is_refused_and_accelerate_suggested() -> None:
    """`fallback = false` keeps all variants on one backend."""
    [refusal] = plan_on("H100-80", "Qwen/Qwen-7B-Chat", "bf16", fallback=False).refused
    assert "does not support QWenLMHeadModel" in refusal.reason
    assert "evaluate.backend = 'accelerate'" in refusal.suggestion


def test_if_neither_back_end_works_both_reasons_are_given() -> None:
    """vLLM has no code for the model, and for transformers the GPU is too small."""
    [refusal] = plan_on("L4-24", "Qwen/Qwen-7B-Chat", "fp32", gpus=1).refused
    assert "vLLM 0.32 does not support QWenLMHeadModel" in refusal.reason
    assert "transformers 5.17 needs" in refusal.reason


def plan_of_config(**values: object) -> Plan:
    """Return the plan of a local Llama with these values in its config.json, for vLLM."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = {"model_type": "llama", **sizes, "vocab_size": 128, "max_position_embeddings": 8192} | values
    Path("model").mkdir(exist_ok=True)
    Path("model/config.json").write_text(json.dumps(config), encoding="utf-8")
    complete(Path("model"))
    Path("cluster.toml").write_text(PROFILE.format(gpu="H100-80", gpus=8), encoding="utf-8")
    text = MANIFEST.format(model="x", schemes=["bf16"], fallback="true").replace('id = "x"', 'path = "model"')
    Path("m.toml").write_text(text, encoding="utf-8")
    return make_plan(resolve(load(Path("m.toml"))))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"architectures": ["MyOwnForCausalLM"]}, "vLLM 0.32 does not support MyOwnForCausalLM"),
        (
            {"model_type": "diffllama", "architectures": ["MyOwnForCausalLM"]},
            "vLLM 0.32 does not support MyOwnForCausalLM",
        ),
        ({}, "vLLM 0.32 needs the key architectures, which its config.json does not have"),
        ({"architectures": None}, "vLLM 0.32 needs the key architectures, which its config.json does not have"),
        ({"architectures": []}, "vLLM 0.32 needs the key architectures, which its config.json does not have"),
    ],
)
def test_accelerate_evaluates_architectures_that_vllm_lacks(values: dict[str, object], reason: str) -> None:
    """Also those of families whose sizes are unknown, and configurations without a name."""
    plan = plan_of_config(**values)
    assert evaluators(plan) == {"bf16": ("accelerate", "transformers")}
    assert any(note.endswith(f"because {reason}.") for note in plan.notes)


@pytest.mark.parametrize("named", [["LlamaForCausalLM"], "LlamaForCausalLM", ["MyOwnForCausalLM", "LlamaForCausalLM"]])
def test_one_known_architecture_is_enough(named: object) -> None:
    """vLLM takes the first name that it knows."""
    assert evaluators(plan_of_config(architectures=named)) == {"bf16": ("vllm", "vllm")}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            {"model_type": "bert", "architectures": ["BertModel"]},
            "BertModel (architectures in its config.json) generates",
        ),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM (architectures in its"),
        ({"architectures": ["LlamaModel"]}, "LlamaModel (architectures in its config.json) generates no text"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification (architectures"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "it is an encoder-decoder model (is_encoder_decoder)"),
        ({"is_causal": False}, "its attention reads later tokens (is_causal = false in its config.json)"),
        ({"use_bidirectional_attention": True}, "its attention reads later tokens (use_bidirectional_attention = true"),
    ],
)
def test_a_model_that_generates_no_text_is_refused(values: dict[str, object], reason: str) -> None:
    """Encoders, embedding models and classifiers are refused with the name in their configuration."""
    with pytest.raises(ManifestError) as caught:
        plan_of_config(**values)
    [problem] = caught.value.problems
    assert f"models.0.path: 'model' cannot be evaluated: {reason}" in problem


def test_names_without_a_suffix_of_causal_models_may_be_causal() -> None:
    """ChatGLMModel is a causal model, and the checkpoint's own code may have any name."""
    for values in (
        {"architectures": ["ChatGLMModel"]},
        {"architectures": ["X"], "auto_map": {"AutoModelForCausalLM": "x.X"}},
    ):
        assert evaluators(plan_of_config(**values))


@pytest.mark.parametrize("scheme", ["fp8-dynamic", "smoothquant-w8a8"])
def test_accelerate_evaluates_quantized_experts_on_cpus(scheme: str) -> None:
    """vLLM has a kernel for these linear layers on CPUs, and none for experts without AMX.

    Observed: FP8 experts were planned for vLLM on CPUs, which has no kernel for them.
    """
    assert evaluators(plan_on("none", LLAMA, scheme)) == {scheme: ("vllm", "vllm-cpu")}
    plan = plan_on("none", "Qwen/Qwen3-30B-A3B", "fp8-dynamic")
    assert evaluators(plan) == {"fp8-dynamic": ("accelerate", "transformers")}
    [note] = [note for note in plan.notes if "because vLLM" in note]
    assert "does not compute fp8_e4m3 weights with fp8_e4m3 activations in experts on the CPUs of gpu" in note
    assert evaluators(plan_on("none", "Qwen/Qwen3-30B-A3B", "bf16")) == {"bf16": ("vllm", "vllm-cpu")}
