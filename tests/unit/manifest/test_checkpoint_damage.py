"""Damaged models on this file system are refused when a manifest is loaded, before anything is submitted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcq.core.errors import ManifestError
from hpcq.manifest.checkpoint_damage import code_notes
from tests.checkpoint_files import LLAMA, write_safetensors
from tests.unit.catalog.test_checkpoint_problems import TENSORS, without, write
from tests.unit.manifest.conftest import LoadText

MANIFEST = """
[run]
name = "x"
[[models]]
path = "model"
[schemes]
use = ["bf16", "fp8-dynamic"]
[tasks]
use = ["arc_challenge"]
"""
WEIGHTS = Path("model/model.safetensors")


def _cut() -> None:
    WEIGHTS.write_bytes(WEIGHTS.read_bytes()[:-7])


def _corrupt() -> None:
    WEIGHTS.write_bytes(b"\xff" * 64 + WEIGHTS.read_bytes()[64:])


def _absent_shard() -> None:
    weight_map = dict.fromkeys(TENSORS, "model-00001-of-00002.safetensors")
    WEIGHTS.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    WEIGHTS.unlink()


def _small_vocabulary() -> None:
    small = {"model.embed_tokens.weight": (1000, 256), "lm_head.weight": (1000, 256)}
    write_safetensors(WEIGHTS, **{**TENSORS, **small})
    config = {**LLAMA, "num_hidden_layers": 3, "vocab_size": 1000}
    WEIGHTS.with_name("config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_cut, "model.safetensors has "),
        (_corrupt, "model.safetensors is not a complete safetensors file"),
        (_absent_shard, "model-00001-of-00002.safetensors, which model.safetensors.index.json names, is missing: "),
        (lambda: write_safetensors(WEIGHTS, **without("lm_head.weight")), "it has no head"),
        (
            lambda: write_safetensors(WEIGHTS, **without("model.layers.1.mlp.up_proj.weight")),
            "layer 1 has no mlp.up_proj.weight",
        ),
        (_small_vocabulary, "tokenizer.json has token ids up to 1023, but the model has 1000 tokens"),
    ],
)
def test_a_damaged_model_is_refused_at_plan_time(
    load_text: LoadText, damage: Callable[[], object], problem: str
) -> None:
    """The message has the key, the file and the folder.

    Observed: such models passed the plan; without a head or a projection, two shards were two random models.
    """
    write(Path("model"))
    load_text(MANIFEST)
    damage()

    with pytest.raises(ManifestError) as caught:
        load_text(MANIFEST)
    [sentence] = caught.value.problems
    assert sentence.startswith("mine.toml:5: models.0.path: 'model': ")
    assert problem in sentence
    assert sentence.endswith("model).")


def _settings(content: str) -> None:
    WEIGHTS.with_name("generation_config.json").write_text(content)


@pytest.mark.parametrize(
    ("content", "clause"),
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132\n",
            "generation_config.json is a Git LFS pointer, not the file itself: correct it, copy or download it again",
        ),
        ('{"eos_token_id": 2,}', "generation_config.json is not valid JSON: correct it, copy or download it again"),
        ("[]", "generation_config.json is not a JSON object: correct it, copy or download it again"),
        (
            '{"eos_token_id": "2"}',
            'in generation_config.json, eos_token_id has values that are not token ids: "2": correct eos_token_id',
        ),
        (
            '{"eos_token_id": [2, 1024]}',
            "in generation_config.json, eos_token_id has 1024, but the model has 1024 tokens: correct it",
        ),
    ],
)
def test_stop_tokens_that_cannot_be_read_are_refused(load_text: LoadText, content: str, clause: str) -> None:
    """A task that generates text needs the stop tokens; other tasks do not read the file.

    Observed: the plan accepted such files without a message, all stop tokens were lost, and the task got a score
    without a mark.
    """
    write(Path("model"))
    _settings(content)

    load_text(MANIFEST)
    with pytest.raises(ManifestError) as caught:
        load_text(MANIFEST.replace("arc_challenge", "gsm8k"))
    [sentence] = caught.value.problems
    assert sentence.startswith(f"mine.toml:5: models.0.path: 'model': {clause}, or delete the file (")


@pytest.mark.parametrize(
    "content", ['{"eos_token_id": [2, 1023]}', '{"eos_token_id": null}', "{}", '{"repetition_penalty": "1.3"}']
)
def test_other_generation_settings_are_no_problem(load_text: LoadText, content: str) -> None:
    """Settings other than stop tokens are ignored, so that none of them can be invalid."""
    write(Path("model"))
    _settings(content)
    load_text(MANIFEST.replace("arc_challenge", "gsm8k"))


def test_a_broken_link_to_generation_settings_is_refused(load_text: LoadText) -> None:
    """A link into a cache that was deleted is not the absence of the file.

    Observed: it was treated as no file, so that the stop tokens of config.json were used.
    """
    write(Path("model"))
    WEIGHTS.with_name("generation_config.json").symlink_to("blobs/4d7a")
    with pytest.raises(ManifestError, match=r"'model': generation_config\.json is a broken symbolic link: correct it"):
        load_text(MANIFEST.replace("arc_challenge", "gsm8k"))


def test_stop_tokens_of_config_are_checked_without_generation_settings(load_text: LoadText) -> None:
    """Without a generation_config.json, stop tokens come from config.json."""
    write(Path("model"), eos_token_id=99999999)
    with pytest.raises(ManifestError, match=r"in config\.json, eos_token_id has 99999999, but the model has 1024 tok"):
        load_text(MANIFEST.replace("arc_challenge", "gsm8k"))


@pytest.mark.parametrize(
    ("values", "clause"),
    [
        ({"num_attention_heads": "9"}, 'num_attention_heads in its config.json is "9", not a number: correct it'),
        (
            {"max_position_embeddings": "8k"},
            'max_position_embeddings in its config.json is "8k", not a number: correct it',
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 0}},
            "rope_scaling.factor in its config.json is 0, not a number above 0: correct it",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": "1e6"}}},
            'rope_parameters.full_attention.rope_theta in its config.json is "1e6", not a number above 0: correct it',
        ),
        (
            {"model_type": "deepseek_v3", "qk_rope_head_dim": 16, "head_dim": 1},
            "head_dim in its config.json is 1, not 16 as qk_rope_head_dim: correct it",
        ),
        ({"rms_norm_eps": "1e-5"}, 'rms_norm_eps in its config.json is "1e-5", not a number above 0: correct it'),
        (
            {"tie_word_embeddings": "false"},
            'tie_word_embeddings in its config.json is "false", not true or false: correct it',
        ),
        ({"rope_scaling": "linear"}, 'rope_scaling in its config.json is "linear", not a table: correct it'),
        (
            {"rope_parameters": {"rope_type": "yam", "rope_theta": 10000.0}},
            'rope_parameters.rope_type in its config.json is "yam", which transformers does not have',
        ),
        (
            {"rope_scaling": {"type": "yam", "factor": 2.0}},
            'rope_scaling.type in its config.json is "yam", which transformers does not have',
        ),
        (
            {"rope_parameters": {"sliding_attention": {"rope_type": "yam"}}},
            'rope_parameters.sliding_attention.rope_type in its config.json is "yam", which transformers does not have',
        ),
        (
            {"hidden_act": "sliu"},
            'hidden_act in its config.json is "sliu", which transformers does not have',
        ),
    ],
)
def test_invalid_values_of_config_are_refused(load_text: LoadText, values: dict[str, object], clause: str) -> None:
    """Texts instead of numbers, and factors of zero, are named with the key.

    Observed: the plan accepted them, at most with the note that the size of the model is unknown; the unit failed. With
    an unknown rope_type or hidden_act it failed with transformers' KeyError.
    """
    write(Path("model"), **values)
    with pytest.raises(ManifestError) as caught:
        load_text(MANIFEST)
    [sentence] = caught.value.problems
    clause = f"{clause.removesuffix(': correct it')}: correct it"
    assert sentence.startswith(f"mine.toml:5: models.0.path: 'model': {clause}, or ")


CODE = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
OWN = {"model_type": "x_model", "architectures": ["XForCausalLM"]}


@pytest.mark.parametrize(
    ("values", "clause"),
    [
        (
            {**OWN, "auto_map": CODE},
            "config.json needs the model's own code (auto_map), because transformers has no model_type 'x_model': set",
        ),
        ({"model_type": "lama"}, "transformers has no model_type 'lama': correct config.json ("),
        ({"auto_map": CODE}, None),
    ],
)
def test_models_that_transformers_does_not_know_are_refused(
    load_text: LoadText, values: dict[str, object], clause: str | None
) -> None:
    """Such a model needs its own code, and the permission to run it; a known model_type does not.

    Observed: the plan accepted both, and the unit failed.
    """
    write(Path("model"), **values)
    if clause is None:
        load_text(MANIFEST)
        return
    with pytest.raises(ManifestError) as caught:
        load_text(MANIFEST)
    [sentence] = caught.value.problems
    assert sentence.startswith(f"mine.toml:5: models.0.path: 'model': {clause}")
    assert values.get("auto_map") or sentence.endswith("Did you mean 'llama'?")


def test_own_code_may_be_allowed_or_be_that_of_vllm(load_text: LoadText) -> None:
    """With trust_remote_code, with an architecture of vLLM, or with the user's own environment, nothing is refused."""
    folder = write(Path("model"), **OWN, auto_map=CODE)
    for name in ("configuration_x.py", "modeling_x.py"):
        (folder / name).write_text("")
    trusted = MANIFEST.replace('path = "model"', 'path = "model"\ntrust_remote_code = true')
    load_text(trusted.replace('"bf16", "fp8-dynamic"', '"bf16"'))
    write(Path("model"), **{**OWN, "architectures": ["BailingMoeForCausalLM"]}, auto_map=CODE)
    load_text(MANIFEST, "evaluate.backend=vllm", 'schemes.use=["bf16"]')


@pytest.mark.parametrize(
    ("model", "manifest", "note"),
    [
        ("", "", "model: transformers computes it with its own code for this model_type, not with the model's code"),
        (
            "trust_remote_code = true",
            '[evaluate]\nbackend = "vllm"',
            "model: vllm computes it with its own code for this architecture, not with the model's code.",
        ),
        ("trust_remote_code = true", '[evaluate]\nbackend = "accelerate"', None),
    ],
)
def test_code_of_a_model_that_is_not_used_is_noted(
    load_text: LoadText, model: str, manifest: str, note: str | None
) -> None:
    """Both libraries prefer their own code, without a word, and the model's may compute something else."""
    folder = write(Path("model"), architectures=["LlamaForCausalLM"], auto_map=CODE)
    for module in ("configuration_x", "modeling_x"):
        (folder / f"{module}.py").write_text("")
    text = MANIFEST.replace('path = "model"', f'path = "model"\n{model}') + manifest
    assert [one[: len(note or "")] for one in code_notes(load_text(text))] == ([note] if note else [])


@pytest.mark.parametrize("code", [{"AutoTokenizer": "tokenization_x.X"}, ["tokenization_x.X", None]])
def test_code_of_a_tokenizer_that_is_not_used_is_noted(load_text: LoadText, code: object) -> None:
    """Then transformers uses another class than without `auto_map`, which may split texts otherwise."""
    folder = write(Path("model"), architectures=["LlamaForCausalLM"])
    (folder / "tokenization_x.py").write_text("")
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({"auto_map": code}))
    [note] = code_notes(load_text(MANIFEST))
    assert note.startswith("model: transformers makes its tokenizer from tokenizer.json, not with the model's code")
    assert not [*code_notes(load_text(MANIFEST.replace('path = "model"', 'path = "model"\ntrust_remote_code = true')))]
    config.write_text(json.dumps({"auto_map": {"AutoTokenizer": None}}))
    assert not [*code_notes(load_text(MANIFEST))]


@pytest.mark.parametrize("entry", ["", 5, ["tokenization_x.X", ""], [None, {}]])
def test_an_entry_of_auto_map_that_names_no_class_is_refused(load_text: LoadText, entry: object) -> None:
    """transformers stops on the node with an error that names neither the file nor the key."""
    folder = write(Path("model"), architectures=["LlamaForCausalLM"])
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": entry}}))
    with pytest.raises(ManifestError, match=r"auto_map in tokenizer_config.json has .* for AutoTokenizer: correct or"):
        load_text(MANIFEST)
