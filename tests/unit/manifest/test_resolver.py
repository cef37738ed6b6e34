"""Resolving manifests: models with schemes, tasks with items, settings, caveats and missing inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcq.catalog import packages
from hpcq.core.digests import digest_of_items, digest_of_model, digest_of_text
from hpcq.core.errors import ManifestError
from hpcq.manifest import Context, resolve
from tests.checkpoint_files import complete, write_safetensors

LoadText = Callable[..., Context]

PACKAGED = """\
[run]
name = "packaged"
[[models]]
id = "HuggingFaceTB/SmolLM2-135M-Instruct"
source = "packages"
[schemes]
use = ["gptq-w4a16-g64", "bf16"]
[tasks]
use = ["arc_challenge", "gsm8k"]
limit = 40
data = "packages"
"""


def make_checkpoint(folder: Path) -> Path:
    """Create a folder that looks like the checkpoint of a tiny Llama."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 100,
        "max_position_embeddings": 8192,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", weight=(2,))
    complete(folder)
    return folder


def stage_all() -> None:
    """Create placeholders for all inputs of the packaged manifest where they are staged."""
    model = packages.find_packaged_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    calibration = packages.find_packaged_calibration("boolq-passages")
    assert model
    assert calibration
    make_checkpoint(model.staged_path)
    calibration.staged_path.parent.mkdir(parents=True)
    calibration.staged_path.write_text(json.dumps({"text": "Some text. " * 30_000}) + "\n")
    for task in ("arc_challenge", "gsm8k"):
        items = packages.find_packaged_dataset(task)
        assert items
        items.staged_path.mkdir(parents=True)
        (items.staged_path / "test.jsonl").write_text("{}\n")


def test_unstaged_inputs_are_listed_and_have_no_digest(load_text: LoadText) -> None:
    """Before staging, a manifest resolves with a sentence for the model, each task's items and the calibration text."""
    resolved = resolve(load_text(PACKAGED))
    assert resolved.missing == (
        "Model HuggingFaceTB/SmolLM2-135M-Instruct is missing: run `hpcq stage mine.toml`.",
        "The items of arc_challenge are missing: run `hpcq stage mine.toml`.",
        "The items of gsm8k are missing: run `hpcq stage mine.toml`.",
        "The calibration text boolq-passages is missing: run `hpcq stage mine.toml`.",
    )
    assert {model.digest for model, _ in resolved.pairs} == {None}
    assert {task.data_digest for task in resolved.tasks} == {None}


def test_staged_inputs_have_the_digests_of_their_files(load_text: LoadText) -> None:
    """After staging nothing is missing, and model, items and calibration text have digests."""
    stage_all()
    resolved = resolve(load_text(PACKAGED))
    model, calibration = resolved.pairs[0][0], resolved.calibration
    assert resolved.missing == ()
    assert calibration
    assert calibration.path
    assert model.digest == digest_of_model(Path(str(model.path)))
    assert resolved.tasks[0].data_digest == digest_of_items(Path(str(resolved.tasks[0].data_path)))
    assert calibration.digest == digest_of_text(Path(calibration.path))


def test_unquantized_schemes_come_first(load_text: LoadText) -> None:
    """A model's base checkpoint precedes its quantized variants, in any order of the manifest."""
    resolved = resolve(load_text(PACKAGED))
    assert [(model.slug, scheme.name) for model, scheme in resolved.pairs] == [
        ("smollm2-135m-instruct", "bf16"),
        ("smollm2-135m-instruct", "gptq-w4a16-g64"),
    ]
    assert resolved.pairs[1][1].group_size == 64


def test_caveats_of_models_items_and_their_number_are_gathered(load_text: LoadText) -> None:
    """Notes mention dequantized weights, items that differ from the original, and the number of items."""
    notes = resolve(load_text(PACKAGED)).notes
    assert notes[0].startswith("HuggingFaceTB/SmolLM2-135M-Instruct: The weights were dequantized from 4-bit GGUF")
    assert any(note.startswith("arc_challenge: 1044 of the 1172 test items") for note in notes)
    assert notes[-1] == (
        "Only some of the items were used (arc_challenge 40 of 1172, gsm8k 40 of 1319): see the standard errors."
    )


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ("tasks.limit=5", "(mmlu at most 5 of each subtask)"),
        ("tasks.limit=100000", ""),
        ("tasks.sample={n=100}", "(mmlu at most 100)"),
        ("tasks.sample={n=100000}", ""),
    ],
)
def test_numbers_of_items_are_possible(smallest: str, load_text: LoadText, settings: str, note: str) -> None:
    """A limit above the number of items was noted as the number of evaluated items."""
    notes = resolve(load_text(smallest, "tasks.use=['mmlu']", settings)).notes
    assert [one for one in notes if "Only some" in one] == (
        [f"Only some of the items were used {note}: see the standard errors."] if note else []
    )


def test_a_whole_task_from_the_hub_has_no_caveat(smallest: str, load_text: LoadText) -> None:
    """There are no notes if all items are evaluated; items on the hub have no path and no digest."""
    resolved = resolve(load_text(smallest))
    assert resolved.notes == ()
    assert (resolved.tasks[0].data_path, resolved.tasks[0].data_digest) == (None, None)


def test_a_model_by_path_is_read_from_its_own_configuration(load_text: LoadText, tmp_path: Path) -> None:
    """A local checkpoint gives its shape and its digest; without an id its path is the id."""
    folder = make_checkpoint(tmp_path / "models" / "own")
    resolved = resolve(
        load_text(
            '[run]\nname = "x"\n[[models]]\npath = "models/own"\n[schemes]\nuse = ["bf16"]\n[tasks]\nuse = ["gsm8k"]\n'
        )
    )
    [(model, shape)] = resolved.shapes.items()
    assert (model.id, model.slug, model.path) == ("models/own", "own", str(folder))
    assert model.digest == digest_of_model(folder)
    assert shape
    [(attention, layers)] = shape.attentions
    assert (shape.hidden_size, layers, attention.kv_heads, attention.key_dim) == (64, 2, 4, 16)


def test_a_checkpoint_that_does_not_exist_yet_is_missing(load_text: LoadText, tmp_path: Path) -> None:
    """A model on another machine can be planned; the catalog gives its shape."""
    resolved = resolve(
        load_text(
            '[run]\nname = "x"\n[[models]]\nid = "google/gemma-2b"\npath = "there"\n[schemes]\nuse = ["bf16"]\n'
            '[tasks]\nuse = ["gsm8k"]\n'
        )
    )
    fix = "Correct the path, or copy it there."
    assert resolved.missing == (f"Model google/gemma-2b is missing: its folder {tmp_path}/there does not exist. {fix}",)
    assert [shape is not None for shape in resolved.shapes.values()] == [True]


def test_task_options_override_the_shots_of_suites(load_text: LoadText, smallest: str) -> None:
    """A suite sets the number of few-shot examples of its tasks; options of a task override it."""
    text = smallest.replace('use = ["arc_challenge"]', 'suites = ["openllm-v1"]\nlimit = 9')
    text += "[tasks.options.gsm8k]\nnum_fewshot = 0\nlimit = 3\nmax_gen_toks = 7\n"
    tasks = {task.name: task for task in resolve(load_text(text)).tasks}
    assert (tasks["arc_challenge"].num_fewshot, tasks["arc_challenge"].limit) == (25, 9)
    assert (tasks["gsm8k"].num_fewshot, tasks["gsm8k"].limit, tasks["gsm8k"].max_gen_toks) == (0, 3, 7)


def test_no_calibration_where_no_scheme_needs_it(load_text: LoadText, smallest: str) -> None:
    """Schemes without calibration omit the calibration set, so that it does not change their address."""
    assert resolve(load_text(smallest, "schemes.use=['bf16', 'fp8-dynamic']")).calibration is None
    assert resolve(load_text(smallest, "schemes.use=['bf16', 'fp8']")).calibration


def test_a_definition_changes_its_base(load_text: LoadText, smallest: str) -> None:
    """A custom scheme is its base with changes; whether it needs calibration is computed again."""
    text = smallest.replace('["bf16"]', '["mine", "mine-g32", "static"]') + (
        '[[schemes.define]]\nname = "mine"\nbase = "gptq-w8a16"\ngroup_size = 64\n'
        'damping = 0.1\nignore = ["re:.*head"]\n'
        '[[schemes.define]]\nname = "static"\nbase = "fp8-dynamic"\ndynamic = false\n'
    )
    mine, narrow, static = (scheme for _, scheme in resolve(load_text(text)).pairs)
    assert (mine.weights, mine.granularity, mine.group_size, mine.damping) == ("int8", "group", 64, 0.1)
    assert mine.ignore == ("re:.*head",)
    assert narrow.group_size == 32
    assert static.needs_calibration


@pytest.mark.parametrize(
    ("backend", "environment", "synthetic_options"),
    [
        ("accelerate", "transformers", ()),
        ("vllm", "vllm-cpu", ()),
        ("synthetic", "core", (("request_seconds", 0.0), ("load_seconds", 0.0), ("memory_gib", 0.0))),
    ],
)
def test_each_back_end_has_its_environment(
    load_text: LoadText, smallest: str, backend: str, environment: str, synthetic_options: tuple[tuple[str, float], ...]
) -> None:
    """Each backend has a default environment; on nodes without GPUs, as here, vLLM's is its CPU build."""
    settings = resolve(load_text(smallest, f"evaluate.backend={backend}")).evaluate
    assert (settings.environment, settings.synthetic_options) == (environment, synthetic_options)


def test_engine_arguments_are_for_vllm_and_ignored_in_a_rehearsal(load_text: LoadText, smallest: str) -> None:
    """`evaluate.engine` is part of vLLM's settings only, and does not prevent a rehearsal."""
    text = smallest + '[evaluate]\nbackend = "vllm"\nengine = { kv_cache_gib = 4, enforce_eager = true }\n'
    assert resolve(load_text(text)).evaluate.engine == (("kv_cache_gib", 4.0), ("enforce_eager", True))
    assert resolve(load_text(text, "evaluate.backend=synthetic")).evaluate.engine == ()


def test_a_rehearsal_replaces_every_quantization_tool(load_text: LoadText) -> None:
    """With the synthetic backend nothing is missing, nothing is calibrated, and no real tool is used."""
    resolved = resolve(load_text(PACKAGED, "evaluate.backend=synthetic"))
    assert (resolved.missing, resolved.calibration, resolved.quantize.environment) == ((), None, "core")
    assert [(scheme.name, scheme.tool) for _, scheme in resolved.pairs] == [
        ("bf16", "none"),
        ("gptq-w4a16-g64", "synthetic"),
    ]


def test_a_rehearsal_needs_no_known_model(load_text: LoadText, smallest: str) -> None:
    """With the synthetic backend an unknown model is rehearsed like any other."""
    resolved = resolve(
        load_text(
            smallest,
            "evaluate.backend=synthetic",
            "models.0.id=unknown/model",
            "schemes.use=['bf16', 'synthetic-w4a16']",
        )
    )
    assert {model.id: shape for model, shape in resolved.shapes.items()} == {"unknown/model": None}
    assert (resolved.missing, resolved.quantize.environment) == ((), "core")


@pytest.mark.parametrize(
    ("dtype", "scheme", "expected"),
    [
        ("auto", "fp32", "float32"),
        ("auto", "fp16", "float16"),
        ("auto", "fp8", "bfloat16"),
        ("float32", "fp8", "float32"),
    ],
)
def test_the_computing_type_follows_the_scheme(
    load_text: LoadText, smallest: str, dtype: str, scheme: str, expected: str
) -> None:
    """'auto' is the weights' own type, or bfloat16 if quantized; an explicit type is kept."""
    resolved = resolve(load_text(smallest, f"evaluate.dtype={dtype}", f"schemes.use=['{scheme}']"))
    assert resolved.evaluate.dtype_for(resolved.pairs[0][1]) == expected


def test_items_are_read_from_a_folder_per_task(load_text: LoadText, smallest: str, tmp_path: Path) -> None:
    """With a folder as `data`, a task's items are in <folder>/<task>, relative to the manifest."""
    (tmp_path / "items" / "arc_challenge").mkdir(parents=True)
    (tmp_path / "items" / "arc_challenge" / "test.jsonl").write_text("{}\n")
    task = resolve(load_text(smallest, "tasks.data=items")).tasks[0]
    assert task.data_path == str(tmp_path / "items" / "arc_challenge")
    assert task.data_digest


def test_a_changed_file_is_rejected_if_its_digest_is_recorded(load_text: LoadText, tmp_path: Path) -> None:
    """A manifest with the digest of its weights does not run with other weights."""
    folder = make_checkpoint(tmp_path / "own")
    before = digest_of_model(folder)
    write_safetensors(folder / "model.safetensors", weight=(3,))
    text = f'[run]\nname = "x"\n[[models]]\npath = "own"\ndigest = "{before}"\n'
    manifest = load_text(text + '[schemes]\nuse = ["bf16"]\n[tasks]\nuse = ["gsm8k"]\n')
    with pytest.raises(ManifestError) as raised:
        resolve(manifest)
    (problem,) = raised.value.problems
    now = digest_of_model(folder)
    assert problem.startswith(f"mine.toml:5: models.0.digest: {folder} has changed: its SHA-256 is now {now}. ")


def test_max_length_is_accepted_if_a_context_length_is_unknown(load_text: LoadText, smallest: str) -> None:
    """8192 tokens exceed Llama-2-7B's context; the context of a checkpoint on another machine is unknown."""
    short = smallest.replace("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-2-7b-hf")
    with pytest.raises(
        ManifestError,
        match="8192 exceeds the context length of every model; the longest is 4096 of meta-llama/Llama-2-7b-hf",
    ):
        load_text(short + "[evaluate]\nmax_length = 8192\n")
    both = short.replace("[schemes]", '[[models]]\npath = "elsewhere/Mixtral-8x7B"\n[schemes]')
    assert load_text(both + "[evaluate]\nmax_length = 8192\n").manifest.evaluate.max_length == 8192


LOCAL = '[run]\nname = "x"\n[[models]]\npath = "own"\n[schemes]\nuse = ["bf16"]\n[tasks]\nuse = ["gsm8k"]\n'


@pytest.mark.parametrize(
    ("damage", "overrides", "sentence"),
    [
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            (),
            "it has no weights (model.safetensors): copy or download it again",
        ),
        (
            lambda folder: (folder / "tokenizer.json").unlink(),
            (),
            "it has no tokenizer: copy the model's tokenizer files into the folder",
        ),
        (
            lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0"}'),
            (),
            "tokenizer.json has no vocabulary (no key model): copy the model's tokenizer files",
        ),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text(
                '{"auto_map": {"AutoTokenizer": ["a.B", null]}}'
            ),
            ("models.0.trust_remote_code=true",),
            "it has no a.py, which auto_map in tokenizer_config.json names: copy the file into the folder",
        ),
    ],
)
def test_an_incomplete_local_model_is_refused(
    load_text: LoadText,
    tmp_path: Path,
    damage: Callable[[Path], object],
    overrides: tuple[str, ...],
    sentence: str,
) -> None:
    """Without weights, tokenizer or code, a model in a folder is refused before a job is submitted.

    Observed: such models passed the plan, and each unit failed, some with an OSError of transformers.
    """
    folder = make_checkpoint(tmp_path / "own")
    load_text(LOCAL)
    damage(folder)
    with pytest.raises(ManifestError) as raised:
        load_text(LOCAL, *overrides)
    assert raised.value.problems == (f"mine.toml:4: models.0.path: 'own': {sentence} ({folder}).",)


def test_folders_that_the_user_has_to_provide_are_not_staged(load_text: LoadText) -> None:
    """`hpcq stage` cannot bring a model whose folder does not exist; what comes from a package, it can.

    Observed: `hpcq stage` said that all inputs are staged.
    """
    resolved = resolve(load_text(LOCAL, "tasks.data=packages"))
    fix = "Correct the path, or copy it there."
    assert resolved.absent == (f"Model own is missing: its folder {Path('own').absolute()} does not exist. {fix}",)
    [staged] = set(resolved.missing) - set(resolved.absent)
    assert staged.startswith("The items of gsm8k are missing: run `hpcq stage")
