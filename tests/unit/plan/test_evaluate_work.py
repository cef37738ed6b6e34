"""Manifest settings that an evaluation's work and its content address contain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcq.core.work_records import EvaluateWork
from hpcq.manifest import load, resolve
from hpcq.plan.plan_json import plan_document
from hpcq.plan.planner import make_plan
from tests.checkpoint_files import complete

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


def test_a_unit_on_gpus_is_not_computed_on_cpus() -> None:
    """A unit that was planned on GPUs requests them: a node without a usable GPU is an error. No address changes."""
    assert work().device == "cuda"
    assert work("evaluate.device=cpu").device == "cpu"
    assert work().address == work("evaluate.device=cpu").address
    Path("c.toml").write_text(
        PROFILE.replace('gpu = "H100-80"\ngpus_per_node = 8\n', "memory_gib = 512\n").replace("memory_gib = 64\n", ""),
        encoding="utf-8",
    )
    assert work("models.0.id=HuggingFaceTB/SmolLM2-135M-Instruct").device == "auto"


def test_prompts_that_will_be_cut_are_in_the_plan() -> None:
    """A plan has a note for each task whose average prompt is longer than evaluate.max_length, and for no other."""
    for length, count in ((2048, 0), (16, 1)):
        notes = make_plan(resolve(load(Path("m.toml"), (f"evaluate.max_length={length}",)))).notes
        found = [note for note in notes if "a prompt of arc_challenge with its answer has about" in note]
        assert len(found) == count
        assert all(f"more than the {length} that the model reads" in note for note in found)


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


CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "max_position_embeddings": 8192,
}


def _marked_tasks(settings: object, backend: str, tmp_path: Path) -> list[str]:
    """Return the tasks that have another address because generation settings are no longer applied."""
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    complete(folder)
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    options = ("tasks.use=['arc_challenge','gsm8k']", f"models.0.path={folder}", f"evaluate.backend={backend}")
    return [task.name for task in work(*options).tasks if task.ignores_generation_config]


def test_only_answers_that_settings_changed_have_another_address(tmp_path: Path) -> None:
    """Generated text of accelerate has another address if the checkpoint has settings that earlier versions applied."""
    assert _marked_tasks({"repetition_penalty": 1.3}, "accelerate", tmp_path) == ["gsm8k"]
    assert _marked_tasks({"max_new_tokens": 3}, "accelerate", tmp_path) == ["gsm8k"]
    assert _marked_tasks({"repetition_penalty": 1.3}, "vllm", tmp_path) == []
    for harmless in ({"do_sample": True, "temperature": 0.6, "eos_token_id": [1, 2]}, {"repetition_penalty": 1.0}, {}):
        assert _marked_tasks(harmless, "accelerate", tmp_path) == []


GEMMA2 = {
    "model_type": "gemma2",
    "architectures": ["Gemma2ForCausalLM"],
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
}
"""Its key attn_logit_softcapping has a default in transformers, 50."""


@pytest.mark.parametrize(
    ("backend", "config", "expected"),
    [
        ("accelerate", GEMMA2, {"attention": "eager"}),
        ("accelerate", {**GEMMA2, "attn_logit_softcapping": None}, {}),
        ("accelerate", {**GEMMA2, "model_type": "gemma"}, {}),
        ("vllm", GEMMA2, {}),
    ],
)
def test_a_model_that_caps_attention_is_addressed_with_its_attention(
    backend: str, config: dict[str, object], expected: dict[str, object]
) -> None:
    """transformers' default attention ignores the caps, so that earlier responses of such a model are not used.

    Observed: log-likelihoods of Gemma-2 were 2.2e-2 off.
    """
    Path("gemma").mkdir()
    Path("gemma/config.json").write_text(json.dumps(config), encoding="utf-8")
    complete(Path("gemma"))
    found = work("models.0.path=gemma", f"evaluate.backend={backend}")
    assert dict(found.options) == expected


def test_a_calibration_with_caps_is_addressed_with_its_attention() -> None:
    """A calibrated checkpoint of such a model is made again; one that needs no calibration is not."""
    Path("gemma").mkdir()
    Path("gemma/config.json").write_text(json.dumps(GEMMA2), encoding="utf-8")
    complete(Path("gemma"))
    Path("text.jsonl").write_text('{"text": "Some text."}\n' * 2000, encoding="utf-8")
    options = (
        "models.0.path=gemma",
        "schemes.use=['gptq-w4a16-g64', 'fp8-dynamic']",
        "calibration.dataset=text.jsonl",
        "calibration.samples=2",
        "calibration.sequence_length=64",
        "evaluate.backend=accelerate",
    )
    plan = make_plan(resolve(load(Path("m.toml"), options)))
    variants = {unit.work.variant for unit in plan.units if isinstance(unit.work, EvaluateWork)}
    assert {one.scheme.name: one.attention for one in variants} == {"gptq-w4a16-g64": "eager", "fp8-dynamic": None}


def evaluation(scheme: str, *options: str) -> EvaluateWork:
    """Return the evaluation of Llama-3.1-8B with a scheme and `options`."""
    chosen = ("models.0.id=meta-llama/Llama-3.1-8B-Instruct", f"schemes.use=['{scheme}']", *options)
    return next(
        unit.work
        for unit in make_plan(resolve(load(Path("m.toml"), chosen))).units
        if isinstance(unit.work, EvaluateWork)
    )


def test_the_engine_gets_other_kernels_only_where_they_change_the_scheme() -> None:
    """linear_backend can change a score, so it is a part of the address, of the variants whose kernel it selects."""
    emulation = "evaluate.engine.linear_backend=emulation"
    nvfp4, emulated = evaluation("nvfp4"), evaluation("nvfp4", emulation)
    assert dict(emulated.options) == {"linear_backend": "emulation"}
    assert "linear_backend" not in dict(emulated.engine_options)
    assert nvfp4.address != emulated.address
    assert evaluation("gptq-w4a16", emulation).address == evaluation("gptq-w4a16").address


def test_simulated_int8_activations_have_other_addresses_than_before() -> None:
    """Responses with the divisor 127.5 are never mixed with those of 127. vLLM and other schemes are as before."""
    accelerate = "evaluate.backend=accelerate"
    assert dict(evaluation("smoothquant-w8a8", accelerate).options) == {"int8_divisor": 127}
    assert dict(evaluation("smoothquant-w8a8").options) == {}
    for scheme in ("fp8-dynamic", "gptq-w8a16", "bf16"):
        assert dict(evaluation(scheme, accelerate).options) == {}
