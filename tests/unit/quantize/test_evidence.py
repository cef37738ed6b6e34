"""Evidence of a quantization: a recipe that does less than its scheme declares gives no checkpoint."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.attempts import Attempt
from hpcq.core.errors import UserInputError, WorkerError
from hpcq.core.work_records import Model, QuantizeWork
from hpcq.quantize import llmcompressor, recipes, worker
from hpcq.quantize.interface import QuantizeJob
from hpcq.quantize.worker import quantize

torch = pytest.importorskip("torch")

MakeWork = Callable[..., QuantizeWork]
CheckpointOf = Callable[[str], Path]


def metadata(folder: Path) -> dict[str, Any]:
    """The metadata of a checkpoint."""
    found: dict[str, Any] = json.loads((folder / "hpcq.json").read_text(encoding="utf-8"))
    return found


def use_targets(monkeypatch: pytest.MonkeyPatch, *targets: str) -> None:
    """Let every recipe quantize only these modules."""
    config_group = recipes.config_group
    monkeypatch.setattr(recipes, "config_group", lambda scheme: {**config_group(scheme), "targets": list(targets)})


def assert_no_checkpoint(folder: Path) -> None:
    """Nothing but the released claim remains."""
    assert [item.name for item in folder.iterdir()] == ["x.claim"]


@pytest.mark.parametrize(
    ("targets", "counts"),
    [
        (("re:no-such-module",), r"0 of 14 declared linear layers are quantized, not model.layers.\*.mlp.down_proj"),
        (("re:.*self_attn.*",), r"8 of 14 declared linear layers are quantized, not model.layers.\*.mlp"),
    ],
)
def test_a_recipe_that_quantizes_too_little_gives_no_checkpoint(
    targets: tuple[str, ...],
    counts: str,
    make_work: MakeWork,
    attempt: Attempt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Targets that match nothing, or only the attention, are no error for llmcompressor.

    Observed: fp8-dynamic of GPT-2 quantized nothing, and was shown as 65.0 (0.0).
    """
    use_targets(monkeypatch, *targets)
    with pytest.raises(WorkerError, match=counts):
        quantize(make_work("fp8-dynamic", tmp_path / "checkpoints" / "x"), attempt)
    assert_no_checkpoint(tmp_path / "checkpoints")


@pytest.mark.parametrize(
    ("ignore", "message"),
    [
        (("lm_head", "re:.*gate_up_proj"), r"'re:\.\*gate_up_proj' matches no linear layer; the layers are model\."),
        (("re:.*down_proj",), r"so the head would be quantized\. Add 'lm_head'"),
        (("re:.*",), r"it matches every linear layer"),
        ((), r"would quantize the head of 'llama', which shares its weights with the embeddings"),
    ],
)
def test_a_list_of_ignored_layers_that_does_not_fit_is_refused(
    ignore: tuple[str, ...], message: str, make_work: MakeWork, attempt: Attempt, tmp_path: Path
) -> None:
    """The worker checks the real names, also of families that the planner does not know.

    Observed: lists that match nothing, match everything, or take the place of lm_head were accepted.
    """
    work = make_work("gptq-w4a16-g64", tmp_path / "checkpoints" / "x")
    scheme = dataclasses.replace(work.variant.scheme, ignore=ignore)
    with pytest.raises(UserInputError, match=message):
        quantize(make_work("gptq-w4a16-g64", tmp_path / "checkpoints" / "x", scheme=scheme), attempt)
    assert_no_checkpoint(tmp_path / "checkpoints")


def test_the_metadata_has_the_coverage(checkpoint_of: CheckpointOf) -> None:
    """Numbers and patterns of quantized and unquantized layers, and the share of parameters."""
    coverage = metadata(checkpoint_of("gptq-w4a16-g64"))["coverage"]
    assert (coverage["quantized_linears"], coverage["unquantized_linears"]) == (14, 1)
    assert coverage["unquantized_modules"] == {"lm_head": 1}
    assert coverage["quantized_modules"]["model.layers.*.mlp.up_proj"] == 2
    linear = 2 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 256)
    total = linear + 260 * 128 + 5 * 128
    assert coverage["quantized_share_of_parameters"] == pytest.approx(linear / total, abs=1e-6)


def test_the_saved_checkpoint_computes_the_same(checkpoint_of: CheckpointOf) -> None:
    """Loaded by transformers, weights-only schemes and FP8 have exactly the model's own log-likelihoods."""
    for name in ("fp8-dynamic", "fp8", "gptq-w4a16-g64", "gptq-w8a16"):
        check = metadata(checkpoint_of(name))["self_check"]
        stored = {"layers": 14, "largest_difference": 0.0}
        expected = {"difference": 0.0, "tolerance": 0.05, "weight_difference": 0.0, "by_definition": stored}
        assert check["reloaded"] == expected
        assert check["quantization"] > 0.001


@pytest.mark.parametrize(("name", "groups"), [("smoothquant-w8a8", 4), ("awq-w4a16-g64", 6)])
def test_transforms_do_not_change_the_function(name: str, groups: int, checkpoint_of: CheckpointOf) -> None:
    """SmoothQuant and AWQ move scales between layers, with the same log-likelihoods up to rounding."""
    check = metadata(checkpoint_of(name))["self_check"]
    ((method, facts),) = [(key, value) for key, value in check.items() if key in ("smoothquant", "awq")]
    assert name.startswith(method)
    assert facts["groups"] == groups
    assert facts["difference"] < 1e-4


def test_a_transform_that_changes_the_function_is_refused(
    make_work: MakeWork, attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Smoothing of a norm that also feeds other layers is only a lower score otherwise."""
    from llmcompressor.modifiers.transform.smoothquant.base import SmoothQuantModifier

    make = SmoothQuantModifier.__init__
    wrong = [[["re:.*q_proj", "re:.*k_proj"], "re:.*input_layernorm"]]  # without v_proj

    monkeypatch.setattr(SmoothQuantModifier, "__init__", lambda self, **fields: make(self, **fields, mappings=wrong))
    with pytest.raises(UserInputError, match=r"^SmoothQuant changes what 'llama' computes: .* differ by [0-9.]+ on"):
        quantize(make_work("smoothquant-w8a8", tmp_path / "checkpoints" / "x"), attempt)
    assert not (tmp_path / "checkpoints" / "x").exists()


@pytest.mark.parametrize(
    ("scheme", "pattern", "message"),
    [
        ("fp8-dynamic", "weight_scale", "The saved checkpoint is not the quantized model: "),
        ("fp8-dynamic", "norm.weight", "The saved checkpoint is not the quantized model: "),
        (
            "fp8",
            "input_scale",
            r"model\.layers\.1\..*\.input_scale of the saved checkpoint is not that of",
        ),
    ],
)
def test_a_damaged_save_gives_no_checkpoint(
    scheme: str,
    pattern: str,
    message: str,
    make_work: MakeWork,
    attempt: Attempt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A checkpoint that loads but computes something else is not committed."""
    save = llmcompressor.save_checkpoint

    def damage_and_save(model: Any, base: Path, output: Path, *rest: Any, **options: Any) -> None:
        from safetensors.torch import load_file, save_file

        save(model, base, output, *rest, **options)
        tensors = dict(load_file(output / "model.safetensors"))
        name = next(name for name in tensors if name.startswith("model.layers.1") and pattern in name)
        tensors[name] *= 2
        save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(llmcompressor, "save_checkpoint", damage_and_save)
    with pytest.raises(WorkerError, match=rf"^{message}.*nothing was committed"):
        quantize(make_work(scheme, tmp_path / "checkpoints" / "x"), attempt)
    assert not (tmp_path / "checkpoints" / "x").exists()


@pytest.mark.parametrize("changes_a_weight", [False, True])
def test_a_tool_that_quantizes_nothing_gives_no_checkpoint(
    make_work: MakeWork,
    attempt: Attempt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    changes_a_weight: bool,
) -> None:
    """A tool of a plug-in may store rounded weights unquantized, but not those of the base."""

    class Tool:
        def quantize(self, job: QuantizeJob) -> dict[str, str]:
            from safetensors.torch import load_file, save_file

            shutil.copytree(job.base, job.output, dirs_exist_ok=True)
            tensors = dict(load_file(job.output / "model.safetensors"))
            tensors["model.norm.weight"] += int(changes_a_weight)
            save_file(tensors, job.output / "model.safetensors", metadata={"format": "pt"})
            return {"recipe": "", "device": "cpu"}

    monkeypatch.setattr(worker, "make_quantizer", lambda _: Tool())
    work = make_work("fp8-dynamic", tmp_path / "checkpoints" / "x")
    with nullcontext() if changes_a_weight else pytest.raises(WorkerError, match="nothing was quantized"):
        quantize(work, attempt)
    assert (tmp_path / "checkpoints" / "x").exists() is changes_a_weight


def test_a_checkpoint_that_does_not_round_activations_is_not_committed(
    make_work: MakeWork, attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed with unrounded activations, an FP8 checkpoint would have the scores of another scheme."""
    save = llmcompressor.save_checkpoint

    def save_weights_only(model: Any, base: Path, output: Path, *rest: Any, **options: Any) -> None:
        save(model, base, output, *rest, **options)
        config = json.loads((output / "config.json").read_text(encoding="utf-8"))
        config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = None
        (output / "config.json").write_text(json.dumps(config), encoding="utf-8")

    monkeypatch.setattr(llmcompressor, "save_checkpoint", save_weights_only)
    with pytest.raises(WorkerError, match=r"transformers rounds the inputs of 0 layers .*, not of 14 as in"):
        quantize(make_work("fp8-dynamic", tmp_path / "checkpoints" / "x"), attempt)


def test_other_files_of_the_base_are_kept(
    make_work: MakeWork, base_checkpoint: Path, attempt: Attempt, tmp_path: Path
) -> None:
    """Chat templates, code and invalid generation settings, which transformers refuses to write, are copied.

    Observed: invalid generation settings stopped a quantization after hours, when it was saved.
    """
    base = Path(shutil.copytree(base_checkpoint, tmp_path / "base"))
    invalid = json.dumps({"do_sample": False, "temperature": 0.6, "eos_token_id": 1})
    files = {"generation_config.json": invalid, "chat_template.jinja": "{{ x }}", "modeling_own.py": "x = 1\n"}
    for name, content in files.items():
        (base / name).write_text(content, encoding="utf-8")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own"}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    quantize(make_work("fp8-dynamic", tmp_path / "x", model=Model(id="tests/m", path=str(base))), attempt)
    for name, content in files.items():
        assert (tmp_path / "x" / name).read_text(encoding="utf-8") == content
    saved = json.loads((tmp_path / "x" / "config.json").read_text(encoding="utf-8"))
    assert saved["auto_map"] == config["auto_map"]
    assert saved["architectures"] == config["architectures"]


def test_code_of_the_checkpoint_runs_if_it_is_trusted(
    make_work: MakeWork, base_checkpoint: Path, attempt: Attempt, tmp_path: Path
) -> None:
    """A model with code of its own is quantized and checked with it, and its checkpoint has the code."""
    base = Path(shutil.copytree(base_checkpoint, tmp_path / "base"))
    code = "from transformers import LlamaConfig, LlamaForCausalLM\n\n\nclass OwnConfig(LlamaConfig):\n"
    code += '    model_type = "own-llama"\n\n\nclass OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n'
    (base / "own_llama.py").write_text(code, encoding="utf-8")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    names = {"AutoConfig": "own_llama.OwnConfig", "AutoModelForCausalLM": "own_llama.OwnForCausalLM"}
    config.update(model_type="own-llama", architectures=["OwnForCausalLM"], auto_map=names)
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    untrusted = Model(id="tests/m", path=str(base))
    with pytest.raises(UserInputError, match=r"transformers cannot make a model of its config.json"):
        quantize(make_work("fp8-dynamic", tmp_path / "x", model=untrusted), attempt)
    trusted = Model(id="tests/m", path=str(base), trust_remote_code=True)
    quantize(make_work("gptq-w4a16-g64", tmp_path / "x", model=trusted), attempt)
    assert metadata(tmp_path / "x")["self_check"]["reloaded"]["difference"] == 0
    assert (tmp_path / "x" / "own_llama.py").read_text(encoding="utf-8") == code


def test_a_base_without_generation_settings_stays_without(
    make_work: MakeWork, base_checkpoint: Path, attempt: Attempt, tmp_path: Path
) -> None:
    """Both then get the settings that transformers derives from config.json."""
    base = Path(shutil.copytree(base_checkpoint, tmp_path / "base"))
    (base / "generation_config.json").unlink()
    quantize(make_work("fp8-dynamic", tmp_path / "x", model=Model(id="tests/m", path=str(base))), attempt)
    assert not (tmp_path / "x" / "generation_config.json").exists()


def test_tensors_in_float32_stay_in_float32(
    make_work: MakeWork, base_checkpoint: Path, attempt: Attempt, tmp_path: Path
) -> None:
    """Tensors that the base has in float32, such as corrections of routers, are not rounded to bfloat16."""
    from safetensors.torch import load_file, save_file

    base = Path(shutil.copytree(base_checkpoint, tmp_path / "base"))
    tensors = dict(load_file(base / "model.safetensors"))
    for layer in (0, 1):
        name = f"model.layers.{layer}.self_attn.q_proj.bias"
        tensors[name] = torch.full((128,), 1.0001)
        for other in ("k", "v", "o"):
            width = 128 if other == "o" else 64
            tensors[name.replace("q_proj", f"{other}_proj")] = torch.full((width,), 1.0001)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**config, "attention_bias": True}), encoding="utf-8")
    quantize(make_work("fp8-dynamic", tmp_path / "x", model=Model(id="tests/m", path=str(base))), attempt)
    saved = load_file(tmp_path / "x" / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.bias"
    assert torch.equal(saved[name], tensors[name])
    assert saved["model.norm.weight"].dtype == torch.bfloat16
