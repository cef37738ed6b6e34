"""Checkpoints that others quantized in a manifest: records, refusals, notes, lock file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcq.core.errors import ManifestError
from hpcq.core.hub_cache import RepoKind, hub_cache
from hpcq.manifest import Context, Manifest, check_manifest, load, lock_text, resolve
from hpcq.manifest.pins import Pin, Pins, Repository
from hpcq.manifest.resolved import ResolvedManifest
from tests.checkpoint_files import AWQ, GPTQ, LLAMA, write_checkpoint

LoadText = Callable[..., Context]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MANIFEST = """\
[run]
name = "foreign"
[[models]]
id = "org/Base"
path = "base"
schemes = {schemes}
checkpoints = {checkpoints}
[tasks]
use = ["arc_challenge"]
"""


def manifest_text(*checkpoints: str, schemes: tuple[str, ...] = ("bf16",)) -> str:
    """A manifest with a base model and checkpoints of it."""
    return MANIFEST.format(checkpoints=json.dumps(checkpoints), schemes=json.dumps(schemes))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The base checkpoint."""
    return write_checkpoint(tmp_path / "base")


@pytest.fixture
def resolve_text(load_text: LoadText, base: Path) -> Callable[..., ResolvedManifest]:
    """A function that resolves a manifest with these checkpoints, next to the base checkpoint."""
    assert base.is_dir()
    return lambda *checkpoints, **more: resolve(load_text(manifest_text(*checkpoints, **more)))


def test_a_checkpoint_is_a_variant_of_its_model(resolve_text: Callable[..., ResolvedManifest], tmp_path: Path) -> None:
    """A checkpoint becomes a variant with the scheme that it declares, its digest and its folder."""
    write_checkpoint(tmp_path / "quantized" / "gptq", GPTQ)
    resolved = resolve_text("./quantized/gptq")
    [variant] = resolved.foreign
    assert variant.scheme.name == "gptq-w4a16-g128 (gptq)"
    assert variant.model.id == "org/Base"
    assert variant.checkpoint
    assert variant.checkpoint.path == str(tmp_path / "quantized" / "gptq")
    assert re.fullmatch("[0-9a-f]{64}", variant.checkpoint.digest or "")
    assert variant.id.startswith("base--gptq-w4a16-g128-gptq--")
    assert resolved.stored_bytes == {variant.checkpoint: 2_000_000}
    assert [scheme.name for _, scheme in resolved.pairs] == ["bf16"]
    assert not resolved.missing


def test_two_checkpoints_of_one_format_stay_apart(
    resolve_text: Callable[..., ResolvedManifest], tmp_path: Path
) -> None:
    """Two checkpoints with the same scheme and the same folder name have different ids, because their files differ."""
    for parent, vocabulary in (("one", 1), ("two", 2)):
        write_checkpoint(tmp_path / parent / "gptq", GPTQ, comment=vocabulary)
    first, second = resolve_text("./one/gptq", "./two/gptq").foreign
    assert first.scheme == second.scheme
    assert first.id != second.id


def test_the_address_depends_on_the_files_alone(
    resolve_text: Callable[..., ResolvedManifest], base: Path, tmp_path: Path
) -> None:
    """A copy in another folder, or a missing base checkpoint, does not change the address."""
    write_checkpoint(tmp_path / "a", GPTQ)
    write_checkpoint(tmp_path / "b" / "a", GPTQ)
    [first], [second] = resolve_text("./a").foreign, resolve_text("./b/a").foreign
    assert first.address == second.address
    shutil.rmtree(base)
    [third] = resolve_text("./a", schemes=()).foreign
    assert third.address == first.address


def test_a_base_that_is_not_evaluated_may_be_missing(load_text: LoadText, tmp_path: Path) -> None:
    """With `schemes = []` only the checkpoints are evaluated, and the base need not exist; a note says so."""
    write_checkpoint(tmp_path / "gptq", GPTQ)
    resolved = resolve(load_text(manifest_text("./gptq", schemes=())))
    assert not resolved.pairs
    assert not resolved.missing
    assert len(resolved.foreign) == 1
    assert "./gptq: it was not compared with its base model, whose sizes are unknown." in resolved.notes
    [shape] = resolved.shapes.values()
    assert shape  # that of the checkpoint
    assert (shape.hidden_size, shape.vocab_size) == (256, 1024)


def test_a_checkpoint_of_the_hub_is_missing_until_it_is_pinned(
    load_text: LoadText, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its commit, a checkpoint on the hub is only missing; with it, it is a variant of that commit."""
    assert base.is_dir()
    text = manifest_text("org/Base-GPTQ@main")
    resolved = resolve(load_text(text))
    assert not resolved.foreign
    assert resolved.missing == ("Checkpoint org/Base-GPTQ@main is missing: run `hpcq stage mine.toml`.",)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    repository = Repository(kind=RepoKind.MODEL, id="org/Base-GPTQ")
    folder = write_checkpoint(hub_cache().snapshot(repository.kind, repository.id, COMMIT), GPTQ)
    pinned = Pins(by_repository={repository: Pin(commit=COMMIT)})
    manifest: Manifest = load(Path("mine.toml")).manifest
    resolved = resolve(check_manifest(manifest, pinned))
    [variant] = resolved.foreign
    assert variant.checkpoint
    assert (variant.checkpoint.id, variant.checkpoint.revision) == ("org/Base-GPTQ", COMMIT)
    assert (variant.checkpoint.digest, variant.checkpoint.path) == (None, str(folder))
    assert variant.scheme.name == "gptq-w4a16-g128 (org)"
    assert f'"org/Base-GPTQ@{COMMIT}"' in lock_text(resolved)
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).unlink()  # only the configuration is staged
    assert resolve(check_manifest(manifest, pinned)).foreign == resolved.foreign


def test_a_lock_file_records_folder_and_digest(resolve_text: Callable[..., ResolvedManifest], tmp_path: Path) -> None:
    """The lock file is a manifest with the absolute folder and its digest; a changed checkpoint is refused."""
    folder = write_checkpoint(tmp_path / "awq", AWQ)
    resolved = resolve_text("./awq")
    lock = tmp_path / "lock.toml"
    lock.write_text(lock_text(resolved))
    assert resolve(load(lock)).foreign == resolved.foreign
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1] + b"x")
    with pytest.raises(ManifestError, match=r"awq has changed: its SHA-256 is now"):
        resolve(load(lock))


def test_another_tokenizer_is_a_note(resolve_text: Callable[..., ResolvedManifest], tmp_path: Path) -> None:
    """A tokenizer with other content than the base model's is a note; another layout of the file is not."""
    folder = write_checkpoint(tmp_path / "gptq", GPTQ)
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content, indent=2))
    assert not [note for note in resolve_text("./gptq").notes if "tokenizer" in note]
    (folder / "tokenizer.json").write_text(json.dumps({**content, "version": "2.0"}))
    [note] = [note for note in resolve_text("./gptq").notes if "tokenizer" in note]
    assert note == (
        "./gptq: its tokenizer differs from its base model's (tokenizer.json): prompts may have other tokens."
    )


def test_other_settings_of_the_computation_are_a_note(
    resolve_text: Callable[..., ResolvedManifest], tmp_path: Path
) -> None:
    """One note names each key in which config.json differs from the base model's, with both values.

    Observed: a checkpoint with another rope_theta or activation function was compared with its base without a note,
    and one with another sliding window was refused because "its layers have other sizes".
    """
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0}
    write_checkpoint(tmp_path / "gptq", GPTQ, rope_parameters=rope, hidden_act="gelu", sliding_window=64)
    (tmp_path / "base" / "config.json").write_text(json.dumps({**LLAMA, "rope_theta": 10000.0}))
    [note] = [note for note in resolve_text("./gptq").notes if "settings" in note]
    assert note == (
        "./gptq: its config.json has other settings than its base model's: "
        'hidden_act is "gelu", not "silu", sliding_window is 64, not null, '
        'rope_type is "linear", not "default", rope_theta is 1000.0, not 10000.0.'
        " Its scores may differ for this reason."
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_attention_heads": 8}, "of this model: num_attention_heads is 8, not 4"),
        ({"intermediate_size": 768}, "of this model: intermediate_size is 768, not 512"),
        ({"hidden_size": 128}, r"'\./x' is not a checkpoint of this model: its hidden_size is 128, not 256"),
        ({"vocab_size": 1000}, "its vocab_size is 1000, not 1024"),
        ({"architectures": ["MistralForCausalLM"]}, "its architecture is MistralForCausalLM, not LlamaForCausalLM"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    resolve_text: Callable[..., ResolvedManifest], tmp_path: Path, config: dict[str, object], message: str
) -> None:
    """Other sizes, another vocabulary or another architecture than the base checkpoint's are refused."""
    write_checkpoint(tmp_path / "x", GPTQ, **config)
    with pytest.raises(ManifestError, match=message):
        resolve_text("./x")


def test_what_cannot_be_a_checkpoint_is_refused(resolve_text: Callable[..., ResolvedManifest], tmp_path: Path) -> None:
    """Unquantized, unknown, incomplete and missing checkpoints are refused together, one sentence each."""
    write_checkpoint(tmp_path / "plain")
    write_checkpoint(tmp_path / "unknown", {"quant_method": "new"})
    (write_checkpoint(tmp_path / "silent", GPTQ) / "tokenizer.json").unlink()
    named = write_checkpoint(tmp_path / "named", GPTQ) / "model.safetensors"
    named.rename(named.with_name("gptq_model-4bit-128g.safetensors"))
    index = {"weight_map": {"weight": "model-1-of-2.safetensors"}}
    partial = write_checkpoint(tmp_path / "partial", GPTQ)
    (partial / "model.safetensors.index.json").write_text(json.dumps(index))
    (write_checkpoint(tmp_path / "cut", GPTQ) / "model.safetensors").write_bytes(b"1234")
    (tmp_path / "empty").mkdir()
    texts = ("./plain", "./unknown", "./silent", "./named", "./cut", "./partial", "./empty", "./none", "justaname")
    with pytest.raises(ManifestError) as caught:
        resolve_text(*texts)
    expected = [
        "'./plain' is not quantized: its config.json has no quantization_config. Give it as a model of its own.",
        "'./unknown': quantization_config.quant_method in config.json: 'new' is an unknown format",
        "'./silent' has no tokenizer: copy the tokenizer files of its base model into the folder.",
        "'./named' has no model.safetensors: rename gptq_model-4bit-128g.safetensors to model.safetensors.",
        "'./cut': its weights cannot be read",
        "'./partial': model-1-of-2.safetensors, which its index names, is missing: copy or download it again.",
        f"'./empty' is not a checkpoint: {tmp_path}/empty/config.json is missing. Copy or download it, or corr",
        "'./none' is not a folder. Correct the path, or copy the checkpoint there.",
        "'justaname' is not an id on the hub, such as 'org/name'. For a folder, write './justaname'.",
    ]
    assert len(caught.value.problems) == len(expected)
    for problem, sentence in zip(caught.value.problems, expected, strict=True):
        assert sentence in problem
        assert "mine.toml:7: models.0.checkpoints: " in problem


@pytest.mark.parametrize(
    ("name", "content", "phrase"),
    [
        (
            "quant_config.json",
            {"w_bit": 4, "q_group_size": 128, "version": "GEMM"},
            "quant_method in config.json: 'gptq', but quant_config.json declares 'awq'",
        ),
        ("quantize_config.json", {"bits": 8}, "bits in config.json: 4, but quantize_config.json declares 8"),
        ("quantize_config.json", {"bits": 4, "group_size": 128, "desc_act": False}, None),
        ("quantize_config.json", [], None),
    ],
)
def test_two_formats_in_one_folder_are_refused(
    resolve_text: Callable[..., ResolvedManifest], tmp_path: Path, name: str, content: object, phrase: str | None
) -> None:
    """Two files that declare different formats are refused with both names; older tools wrote the same format twice.

    Observed: config.json declared GPTQ and quant_config.json AWQ, and the plan took the former without a note.
    """
    folder = write_checkpoint(tmp_path / "x", GPTQ)
    (folder / name).write_text(json.dumps(content))
    if phrase is None:
        assert resolve_text("./x").foreign
        return
    with pytest.raises(ManifestError) as caught:
        resolve_text("./x")
    [problem] = caught.value.problems
    assert f"'./x': quantization_config.{phrase}: move the wrong file to another folder." in problem


def test_a_broken_declaration_of_a_base_is_refused(load_text: LoadText, tmp_path: Path) -> None:
    """The message has the key.

    Observed: a base model with a text as quantization_config was planned as unquantized.
    """
    write_checkpoint(tmp_path / "base", quantization_config="fp8")
    with pytest.raises(
        ManifestError, match=r"'org/Base': quantization_config in config\.json: must be a table: correct"
    ):
        load_text(manifest_text())


def test_adapters_are_refused(load_text: LoadText, base: Path, tmp_path: Path) -> None:
    """A folder of PEFT is no model, with a config.json or without; the message has the fix."""
    (base / "adapter_config.json").write_text("{}")
    for name in ("model.safetensors", "config.json"):
        (base / name).unlink()
        with pytest.raises(
            ManifestError, match=r"'base' is an adapter \(adapter_config\.json\), not a model: merge it"
        ):
            load_text(manifest_text())
    shutil.move(base, tmp_path / "adapter")
    write_checkpoint(base)
    with pytest.raises(ManifestError, match=r"'\./adapter' is an adapter \(adapter_config\.json\)"):
        load_text(manifest_text("./adapter"))


def test_a_quantized_base_is_refused(load_text: LoadText, tmp_path: Path) -> None:
    """A quantized checkpoint as the base would be reported as bf16: it is refused with the fix."""
    write_checkpoint(tmp_path / "base", GPTQ)
    with pytest.raises(ManifestError) as caught:
        load_text(manifest_text())
    [problem] = caught.value.problems
    assert problem == (
        "mine.toml:5: models.0.path: 'org/Base' is a quantized checkpoint (gptq): give its base model as id or path,"
        " with checkpoints = ['./base'], and schemes = [] if the base is not evaluated."
    )


def test_a_checkpoint_may_be_its_own_base(load_text: LoadText, tmp_path: Path) -> None:
    """A model that is published only quantized is its own base, if no scheme of it is evaluated."""
    write_checkpoint(tmp_path / "base", {"quant_method": "fp8", "weight_block_size": [128, 128]})
    [variant] = resolve(load_text(manifest_text("./base", schemes=()))).foreign
    assert variant.scheme.name == "fp8-block (base)"


def test_a_model_without_schemes_and_checkpoints_is_refused(load_text: LoadText, base: Path) -> None:
    """`schemes = []` needs at least one checkpoint."""
    assert base.is_dir()
    with pytest.raises(ManifestError, match="org/Base has no scheme"):
        load_text(manifest_text(schemes=()))


def test_one_commit_under_two_names_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch and its commit are the same model or checkpoint, whose second entry the lock file could not have."""
    text = manifest_text("org/Quantized", "org/Quantized@v1").replace('path = "base"\n', "")
    text += '[[models]]\nid = "org/base"\nrevision = "v1"\nschemes = ["bf16"]\n'
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    Path("mine.toml").write_text(text, encoding="utf-8")
    ids = {"org/Base": "main", "org/base": "v1", "org/Quantized": "main"}
    named = [*ids.items(), ("org/Quantized", "v1")]
    pins = {
        Repository(kind=RepoKind.MODEL, id=name, requested=revision): Pin(commit=COMMIT) for name, revision in named
    }
    for name in ids:
        shutil.copytree(base, hub_cache().snapshot(RepoKind.MODEL, name, COMMIT))
    with pytest.raises(ManifestError) as raised:
        load(Path("mine.toml"), find_pins=lambda _: Pins(by_repository=pins))
    assert "models.1.id: 'org/base' is listed twice." in str(raised.value)
    assert "'org/Quantized@v1' is listed twice: another text names the same checkpoint." in str(raised.value)


def test_a_digest_of_another_text_is_refused(load_text: LoadText, base: Path) -> None:
    """A digest whose checkpoint is not listed is refused."""
    assert base.is_dir()
    text = manifest_text().replace("[tasks]", f'checkpoint_digests = {{"./x" = "{"0" * 64}"}}\n[tasks]')
    with pytest.raises(ManifestError, match=r"'\./x' is not in checkpoints of this model. Correct it, or remove"):
        load_text(text)


def test_a_rehearsal_needs_no_checkpoint(load_text: LoadText) -> None:
    """A rehearsal skips checkpoints that are not on this file system, with a note."""
    resolved = resolve(load_text(manifest_text("./gptq", "org/AWQ"), "evaluate.backend=synthetic"))
    assert not resolved.missing
    assert not resolved.foreign
    assert [note for note in resolved.notes if "not rehearsed" in note] == [
        f"{text}: not rehearsed, because its configuration is not on this file system."
        for text in ("./gptq", "org/AWQ")
    ]
