"""What manifests come to: models with schemes, tasks with their items, settings, caveats, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcq.catalog import packages
from hpcq.core.digests import digest_of_items, digest_of_model, digest_of_text
from hpcq.core.errors import ManifestError
from hpcq.manifest import Manifest, resolve

LoadText = Callable[..., Manifest]

PACKAGED = """\
[run]
name = "packaged"
[[models]]
id = "HuggingFaceTB/SmolLM2-135M-Instruct"
[schemes]
use = ["gptq-w4a16-g64", "bf16"]
[tasks]
use = ["arc_challenge", "gsm8k"]
limit = 40
data = "packages"
"""


def make_checkpoint(folder: Path) -> Path:
    """A folder that looks like the checkpoint of a tiny Llama."""
    folder.mkdir(parents=True)
    config = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 100,
        "max_position_embeddings": 512,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def stage_all() -> None:
    """Put stand-ins where the things that the packaged manifest names are staged."""
    model = packages.find_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    calibration = packages.find_calibration("boolq-passages")
    assert model
    assert calibration
    make_checkpoint(model.staged)
    calibration.staged.parent.mkdir(parents=True)
    calibration.staged.write_text('{"text": "Some text."}\n')
    for task in ("arc_challenge", "gsm8k"):
        items = packages.find_items(task)
        assert items
        items.staged.mkdir(parents=True)
        (items.staged / "test.jsonl").write_text("{}\n")


def test_what_is_not_staged_is_named_and_has_no_digest(load_text: LoadText) -> None:
    """Before staging a manifest resolves, with a sentence for the model, each task's items and the calibration text."""
    resolved = resolve(load_text(PACKAGED))
    assert resolved.missing == (
        "Model HuggingFaceTB/SmolLM2-135M-Instruct is missing: type `hpcq stage mine.toml`.",
        "The items of arc_challenge are missing: type `hpcq stage mine.toml`.",
        "The items of gsm8k are missing: type `hpcq stage mine.toml`.",
        "The calibration text boolq-passages is missing: type `hpcq stage mine.toml`.",
    )
    assert {model.digest for model, _ in resolved.pairs} == {None}
    assert {task.data_digest for task in resolved.tasks} == {None}


def test_what_is_staged_has_the_digests_of_its_files(load_text: LoadText) -> None:
    """After staging nothing is missing, and model, items and calibration text are known by their files' digests."""
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
    """Whatever the order in the manifest, a model's base checkpoint stands before what is compared with it."""
    resolved = resolve(load_text(PACKAGED))
    assert [(model.slug, scheme.name) for model, scheme in resolved.pairs] == [
        ("smollm2-135m-instruct", "bf16"),
        ("smollm2-135m-instruct", "gptq-w4a16-g64"),
    ]
    assert resolved.pairs[1][1].group_size == 64


def test_caveats_of_models_items_and_their_number_are_gathered(load_text: LoadText) -> None:
    """A report can say that weights were 4-bit once, how items differ from the original, and how few they are."""
    notes = resolve(load_text(PACKAGED)).notes
    assert notes[0].startswith("HuggingFaceTB/SmolLM2-135M-Instruct: Its weights were 4-bit once")
    assert any(note.startswith("arc_challenge: 1044 of the 1172 test items") for note in notes)
    assert notes[-1] == (
        "Only some of the items were used (arc_challenge 40 of 1172, gsm8k 40 of 1319): mind the standard errors."
    )


def test_a_whole_task_from_the_hub_has_no_caveat(smallest: str, load_text: LoadText) -> None:
    """Where every item of the original is evaluated nothing is said; items on the hub have no place or digest here."""
    resolved = resolve(load_text(smallest))
    assert resolved.notes == ()
    assert (resolved.tasks[0].data_path, resolved.tasks[0].data_digest) == (None, None)


def test_a_model_by_path_is_read_from_its_own_configuration(load_text: LoadText, tmp_path: Path) -> None:
    """A checkpoint beside the manifest gives its shape and its digest; without an id it goes by its path."""
    folder = make_checkpoint(tmp_path / "models" / "own")
    resolved = resolve(
        load_text(
            '[run]\nname = "x"\n[[models]]\npath = "models/own"\n[schemes]\nuse = ["bf16"]\n[tasks]\nuse = ["gsm8k"]\n'
        )
    )
    model, shape = resolved.pairs[0][0], resolved.shapes["models/own"]
    assert (model.id, model.slug, model.path) == ("models/own", "own", str(folder))
    assert model.digest == digest_of_model(folder)
    assert shape
    assert (shape.hidden, shape.kv_heads, shape.head_dim) == (64, 4, 16)


def test_a_path_that_is_not_there_yet_is_missing(load_text: LoadText, tmp_path: Path) -> None:
    """A plan may be made for a model that another machine holds; the catalog gives its shape."""
    resolved = resolve(
        load_text(
            '[run]\nname = "x"\n[[models]]\nid = "google/gemma-2b"\npath = "there"\n[schemes]\nuse = ["bf16"]\n'
            '[tasks]\nuse = ["gsm8k"]\n'
        )
    )
    assert resolved.missing == (f"Model google/gemma-2b is missing: its folder {tmp_path}/there does not exist.",)
    assert resolved.shapes["google/gemma-2b"]


def test_the_suites_bring_the_leaderboards_shots_and_options_win(load_text: LoadText, smallest: str) -> None:
    """A suite says how many few-shot examples its tasks have, and a task's own options say otherwise."""
    text = smallest.replace('use = ["arc_challenge"]', 'suites = ["openllm-v1"]\nlimit = 9')
    text += "[tasks.options.gsm8k]\nnum_fewshot = 0\nlimit = 3\nmax_gen_toks = 7\n"
    tasks = {task.name: task for task in resolve(load_text(text)).tasks}
    assert (tasks["arc_challenge"].num_fewshot, tasks["arc_challenge"].limit) == (25, 9)
    assert (tasks["gsm8k"].num_fewshot, tasks["gsm8k"].limit, tasks["gsm8k"].max_gen_toks) == (0, 3, 7)


def test_no_calibration_where_no_scheme_needs_it(load_text: LoadText, smallest: str) -> None:
    """Schemes that look at no text leave the calibration set out, so that it cannot change their address."""
    assert resolve(load_text(smallest, "schemes.use=['bf16', 'fp8-dynamic']")).calibration is None
    assert resolve(load_text(smallest, "schemes.use=['bf16', 'fp8']")).calibration


def test_a_definition_changes_its_base(load_text: LoadText, smallest: str) -> None:
    """A scheme of one's own is its base with what it says, and knows anew whether it needs a calibration set."""
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
    ("backend", "environment", "pace"),
    [
        ("accelerate", "transformers", ()),
        ("vllm", "vllm-cpu", ()),
        ("synthetic", "core", (("request_seconds", 0.0), ("load_seconds", 0.0), ("memory_gib", 0.0))),
    ],
)
def test_each_back_end_has_its_environment(
    load_text: LoadText, smallest: str, backend: str, environment: str, pace: tuple[tuple[str, float], ...]
) -> None:
    """Unless the manifest says otherwise a back end runs in the environment that holds it; a rehearsal has a pace.

    On nodes without GPUs, as here, vLLM's is the one with its build for CPUs.
    """
    settings = resolve(load_text(smallest, f"evaluate.backend={backend}")).evaluate
    assert (settings.environment, settings.pace) == (environment, pace)


def test_an_engine_is_vllms_and_a_rehearsal_passes_it_over(load_text: LoadText, smallest: str) -> None:
    """What a manifest sets of the engine reaches vLLM's settings alone, and does not stop a rehearsal."""
    text = smallest + '[evaluate]\nbackend = "vllm"\nengine = { kv_cache_gib = 4, enforce_eager = true }\n'
    assert resolve(load_text(text)).evaluate.engine == (("kv_cache_gib", 4.0), ("enforce_eager", True))
    assert resolve(load_text(text, "evaluate.backend=synthetic")).evaluate.engine == ()


def test_a_rehearsal_makes_up_every_quantization(load_text: LoadText) -> None:
    """With the synthetic back end nothing is missing, nothing is calibrated, and no real tool is called."""
    resolved = resolve(load_text(PACKAGED, "evaluate.backend=synthetic"))
    assert (resolved.missing, resolved.calibration, resolved.quantize.environment) == ((), None, "core")
    assert [(scheme.name, scheme.tool) for _, scheme in resolved.pairs] == [
        ("bf16", "none"),
        ("gptq-w4a16-g64", "synthetic"),
    ]


def test_a_rehearsal_needs_no_known_model(load_text: LoadText, smallest: str) -> None:
    """With the synthetic back end a model that nothing is known of is rehearsed like any other."""
    resolved = resolve(
        load_text(
            smallest,
            "evaluate.backend=synthetic",
            "models.0.id=nobody/nothing",
            "schemes.use=['bf16', 'synthetic-w4a16']",
        )
    )
    assert resolved.shapes == {"nobody/nothing": None}
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
    """'auto' computes in the unquantized weights' own type and in bfloat16 for quantized ones; a named type is kept."""
    resolved = resolve(load_text(smallest, f"evaluate.dtype={dtype}", f"schemes.use=['{scheme}']"))
    assert resolved.evaluate.dtype_for(resolved.pairs[0][1]) == expected


def test_a_folder_of_items_serves_its_tasks(load_text: LoadText, smallest: str, tmp_path: Path) -> None:
    """data = a folder takes a task's items from <folder>/<task>, beside the manifest."""
    (tmp_path / "items" / "arc_challenge").mkdir(parents=True)
    (tmp_path / "items" / "arc_challenge" / "test.jsonl").write_text("{}\n")
    task = resolve(load_text(smallest, "tasks.data=items")).tasks[0]
    assert task.data_path == str(tmp_path / "items" / "arc_challenge")
    assert task.data_digest


def test_a_changed_file_is_refused_where_its_digest_is_locked(load_text: LoadText, tmp_path: Path) -> None:
    """A manifest that says which weights it means is not run with others."""
    folder = make_checkpoint(tmp_path / "own")
    before = digest_of_model(folder)
    (folder / "model.safetensors").write_bytes(b"other weights")
    text = f'[run]\nname = "x"\n[[models]]\npath = "own"\ndigest = "{before}"\n'
    manifest = load_text(text + '[schemes]\nuse = ["bf16"]\n[tasks]\nuse = ["gsm8k"]\n')
    with pytest.raises(ManifestError) as refusal:
        resolve(manifest)
    (problem,) = refusal.value.problems
    now = digest_of_model(folder)
    assert problem.startswith(f"mine.toml:5: models.0.digest: {folder} has changed: its SHA-256 is now {now}. ")


def test_a_length_is_not_refused_where_a_model_s_own_is_not_known(load_text: LoadText, smallest: str) -> None:
    """8192 tokens are beyond Llama-2-7B; what a checkpoint takes that lies elsewhere, nobody knows yet."""
    short = smallest.replace("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-2-7b-hf")
    with pytest.raises(ManifestError, match="8192 is more than any of the models takes: meta-llama/Llama-2-7b-hf has"):
        load_text(short + "[evaluate]\nmax_length = 8192\n")
    both = short.replace("[schemes]", '[[models]]\npath = "elsewhere/Mixtral-8x7B"\n[schemes]')
    assert load_text(both + "[evaluate]\nmax_length = 8192\n").evaluate.max_length == 8192
