"""The quantize worker: facts that hold for every tool, tested with the synthetic one."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcq.core.attempts import Attempt, read_attempts
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.files import digest_of_file
from hpcq.core.work_records import Model, QuantizeWork, Scheme, Variant
from hpcq.quantize import calibration, interface, recipes, synthetic, worker
from hpcq.quantize.base_checkpoint import check_group_size
from hpcq.quantize.interface import make_quantizer
from hpcq.quantize.synthetic import SECONDS_VARIABLE
from tests.checkpoint_files import complete

SYNTHETIC = Scheme(name="synthetic-w4a16", tool="synthetic", method="synthetic", weights="int4", activations="bf16")
LIGHT = "import sys; print(sorted({'torch', 'transformers', 'llmcompressor', 'numpy', 'h5py'} & set(sys.modules)))"


SMOLLM2_135M = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
}


def work_in(folder: Path, *, scheme: Scheme = SYNTHETIC, **variant: object) -> QuantizeWork:
    """A work for the synthetic tool by default."""
    fields = {"model": Model(id="some/model"), **variant}
    return QuantizeWork(
        variant=Variant(scheme=scheme, **fields),  # type: ignore[arg-type]
        checkpoint_path=str(folder / "checkpoints" / "model" / "scheme"),
    )


def base_in(folder: Path, **config: object) -> Model:
    """A model whose folder has a config.json and a tokenizer file, but no weights that can be read."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    complete(folder)
    return Model(id="org/SmolLM2-135M", path=str(folder))


GROUPED = Scheme(
    name="gptq-w4a16",
    tool="llmcompressor",
    method="gptq",
    weights="int4",
    activations="bf16",
    granularity="group",
    group_size=128,
)


def test_a_synthetic_checkpoint_is_marked_and_needs_no_model(tmp_path: Path, attempt: Attempt) -> None:
    """The synthetic tool needs no base checkpoint, and its metadata marks the checkpoint as synthetic."""
    work = work_in(tmp_path)
    worker.quantize(work, attempt)
    folder = Path(work.checkpoint_path)
    record = json.loads((folder / "hpcq.json").read_text(encoding="utf-8"))
    assert record["rehearsal"] is True
    assert (record["schema"], record["address"]) == (1, work.variant.address)
    assert set(record["seconds"]) == {"calibrating", "saving"}
    assert record["peak_memory_bytes"] > 0
    assert sorted(item.name for item in folder.iterdir()) == ["config.json", "hpcq.json", "model.safetensors"]


def test_synthetic_weights_depend_on_the_scheme_alone(tmp_path: Path, attempt: Attempt) -> None:
    """Equal schemes give equal bytes, different schemes give different bytes."""
    schemes = (SYNTHETIC, SYNTHETIC, dataclasses.replace(SYNTHETIC, weights="int8"))
    digests = []
    for number, scheme in enumerate(schemes):
        work = work_in(tmp_path / str(number), scheme=scheme)
        worker.quantize(work, attempt)
        digests.append(digest_of_file(Path(work.checkpoint_path) / "model.safetensors"))
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_a_checkpoint_that_exists_is_left_alone(tmp_path: Path, attempt: Attempt) -> None:
    """A folder that exists is complete: the worker returns at once, reports it, and changes nothing."""
    work = work_in(tmp_path, scheme=GROUPED)
    Path(work.checkpoint_path).mkdir(parents=True)
    worker.quantize(work, attempt)
    assert list(Path(work.checkpoint_path).iterdir()) == []
    (record,) = read_attempts(attempt.path.parent)["quantize.x"]
    assert (record.phase, record.facts) == ("checkpoint already exists", {"existed": True})


def test_a_killed_worker_leaves_no_checkpoint(tmp_path: Path) -> None:
    """A killed worker leaves no folder with the checkpoint's name, and the next worker creates it completely."""
    work = work_in(tmp_path)
    code = (
        "import sys; from pathlib import Path\n"
        "from hpcq.core.attempts import Attempt, AttemptRecord\n"
        "from hpcq.quantize.worker import quantize\n"
        "from hpcq.core.work_records import *\n"
        f"record = AttemptRecord(unit='quantize.y', attempt=1, job_id='1', node='n', pid=1, start='')\n"
        f"quantize({work!r}, Attempt(Path({str(tmp_path / 'attempts')!r}), record))\n"
    ).replace("<UnitKind.QUANTIZE: 'quantize'>", "UnitKind.QUANTIZE")
    slow = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, SECONDS_VARIABLE: "3600"})
    parent = Path(work.checkpoint_path).parent
    while not (parent.is_dir() and any(parent.iterdir())) and slow.poll() is None:
        time.sleep(0.02)
    slow.kill()
    slow.wait()
    assert any(parent.iterdir())
    assert not Path(work.checkpoint_path).exists()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (Path(work.checkpoint_path) / "hpcq.json").is_file()


def test_the_group_size_is_checked_before_anything_is_loaded(tmp_path: Path, attempt: Attempt) -> None:
    """A group size that does not divide is refused from config.json alone: the folder has no real weights."""
    model = base_in(tmp_path / "base", **SMOLLM2_135M)
    work = work_in(tmp_path, scheme=GROUPED, model=model)
    with pytest.raises(UserInputError) as refusal:
        worker.quantize(work, attempt)
    assert str(refusal.value) == (
        "'gptq-w4a16' cannot quantize SmolLM2-135M: 576 is not a multiple of 128 (model.layers.*.self_attn.q_proj). "
        "Try 'gptq-w4a16-g64'."
    )
    assert not Path(work.checkpoint_path).parent.exists()


@pytest.mark.parametrize("name", ["gptq-w4a16", "gptq-w4a16-g128"])
def test_a_group_size_in_the_name_is_replaced(name: str) -> None:
    """The suggestion for 'x-g128' is 'x-g64', not 'x-g128-g64'."""
    with pytest.raises(UserInputError, match=r"Try 'gptq-w4a16-g64'\.$"):
        check_group_size(dataclasses.replace(GROUPED, name=name), SMOLLM2_135M, "this model")


def test_without_any_fitting_group_size_another_granularity_is_suggested() -> None:
    """If no usual group size divides every layer, the message suggests scales per channel."""
    config = {**SMOLLM2_135M, "hidden_size": 100, "intermediate_size": 300, "num_attention_heads": 10}
    with pytest.raises(UserInputError, match="per channel"):
        check_group_size(GROUPED, config, "this model")


@pytest.mark.parametrize(
    ("sizes", "layer"),
    [
        ({"hidden_size": 256, "intermediate_size": 300, "num_attention_heads": 4}, "mlp.down_proj"),
        ({"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 3, "head_dim": 32}, "self_attn.o_proj"),
        ({"hidden_size": 100, "intermediate_size": 512, "num_attention_heads": 4}, "self_attn.q_proj"),
    ],
)
@pytest.mark.parametrize("is_nested", [False, True])
def test_every_kind_of_layer_is_checked(sizes: dict[str, int], layer: str, *, is_nested: bool) -> None:
    """The down projection, heads of any width, and a text model inside a larger one can each be indivisible."""
    config = {**SMOLLM2_135M, **sizes}
    scheme = dataclasses.replace(GROUPED, group_size=64)
    with pytest.raises(UserInputError, match=re.escape(f"(model.layers.*.{layer})")):
        check_group_size(scheme, {"text_config": config} if is_nested else config, "this model")


def test_scales_per_channel_fit_every_model() -> None:
    """A scheme without groups is never refused."""
    scheme = dataclasses.replace(GROUPED, granularity="channel", group_size=None)
    check_group_size(scheme, {**SMOLLM2_135M, "hidden_size": 577, "intermediate_size": 1537}, "this model")


@given(
    heads=st.integers(1, 64),
    head_dim=st.integers(1, 300),
    intermediate=st.integers(1, 20_000),
    group_size=st.sampled_from((16, 32, 64, 128)),
)
def test_a_scheme_is_refused_exactly_if_a_remainder_is_left(
    heads: int, head_dim: int, intermediate: int, group_size: int
) -> None:
    """A scheme passes if and only if its group size divides the inputs of every layer."""
    sizes = {"hidden_size": heads * head_dim, "intermediate_size": intermediate, "num_attention_heads": heads}
    scheme = dataclasses.replace(GROUPED, group_size=group_size)
    fits = heads * head_dim % group_size == 0 and intermediate % group_size == 0
    with nullcontext() if fits else pytest.raises(UserInputError):
        check_group_size(scheme, {**SMOLLM2_135M, **sizes}, "this model")


def test_unknown_configurations_pass() -> None:
    """A configuration without sizes is not refused on a guess."""
    check_group_size(GROUPED, {"model_type": "novel"}, "this model")


def test_a_quantized_base_is_refused(tmp_path: Path, attempt: Attempt) -> None:
    """A checkpoint that is already quantized is not quantized again."""
    model = base_in(tmp_path / "base", hidden_size=128, quantization_config={"quant_method": "gptq"})
    with pytest.raises(UserInputError, match=r"is already quantized: name an unquantized checkpoint\.$"):
        worker.quantize(work_in(tmp_path, scheme=GROUPED, model=model), attempt)


def test_a_missing_base_is_named(tmp_path: Path, attempt: Attempt) -> None:
    """The message about a missing base checkpoint has its path and the fix."""
    model = Model(id="org/m", path=str(tmp_path / "nowhere"))
    with pytest.raises(SetupError, match=r"nowhere: config.json of org/m is missing: stage the manifest"):
        worker.quantize(work_in(tmp_path, scheme=GROUPED, model=model), attempt)


def test_a_base_without_tokenizer_is_refused(tmp_path: Path, attempt: Attempt) -> None:
    """A checkpoint that could not be evaluated is refused before the work starts."""
    model = base_in(tmp_path / "base", hidden_size=128)
    (tmp_path / "base" / "tokenizer.json").unlink()
    with pytest.raises(SetupError, match="has no tokenizer"):
        worker.quantize(work_in(tmp_path, scheme=GROUPED, model=model), attempt)


@pytest.mark.parametrize("planned", [("pytest", "0.0.1"), ("no-such-distribution", "1.0")])
def test_other_versions_than_planned_are_refused(tmp_path: Path, attempt: Attempt, planned: tuple[str, str]) -> None:
    """The address includes the versions of tools: an environment with others does not create the checkpoint."""
    with pytest.raises(
        SetupError, match=f"{planned[0]} is .*, but the plan requires {planned[1]}. Rebuild the environment"
    ):
        worker.quantize(work_in(tmp_path, versions=(planned,)), attempt)


def test_local_version_suffixes_do_not_count(tmp_path: Path, attempt: Attempt) -> None:
    """A CPU build of the planned version ('+cpu') is the planned version."""
    versions = (("pytest", f"{pytest.__version__}+cpu"),)
    work = work_in(tmp_path, versions=versions)
    worker.quantize(work, attempt)
    assert Path(work.checkpoint_path).is_dir()


def test_every_file_of_a_checkpoint_is_as_readable_as_a_new_file(tmp_path: Path, attempt: Attempt) -> None:
    """Checkpoints are shared: no file has a narrower mode than the umask gives a new file."""
    work = work_in(tmp_path)
    worker.quantize(work, attempt)
    fresh = tmp_path / "fresh"
    fresh.touch()
    modes = {item.stat().st_mode for item in Path(work.checkpoint_path).iterdir()}
    assert modes == {fresh.stat().st_mode}


def test_an_unknown_tool_is_refused_with_the_known_ones() -> None:
    """The message about an unknown tool lists the installed ones."""
    match = r"^'autogpt' is not an installed quantizer: choose autoawq, autogptq, autoround, bitsandbytes, "
    with pytest.raises(UserInputError, match=match):
        make_quantizer("autogpt")


def test_a_third_party_tool_is_found(tmp_path: Path) -> None:
    """An installed distribution adds a quantizer by the entry point group hpcq.quantizers alone."""
    info = tmp_path / "their_tool-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-tool\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[hpcq.quantizers]\ntheirs = their_tool:Theirs\n", encoding="utf-8")
    (tmp_path / "their_tool.py").write_text("class Theirs:\n    def quantize(self, job): ...\n", encoding="utf-8")
    code = "from hpcq.quantize.interface import make_quantizer; print(type(make_quantizer('theirs')).__module__)"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    answer = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "their_tool"


def test_a_synthetic_run_imports_no_heavy_library(tmp_path: Path) -> None:
    """Worker, interface, recipes and the synthetic tool import neither torch nor numpy."""
    modules = ", ".join(module.__name__ for module in (worker, interface, recipes, calibration, synthetic))
    code = f"import {modules}; {LIGHT}"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert answer.stdout.strip() == "[]"


def test_phases_are_timed_and_reported_sparingly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time counts for the phase in a report's first word; within a phase reports are at least two seconds apart."""
    moments_s = iter([0.0, 0.0, 1.0, 1.5, 3.5, 4.0, 6.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(moments_s))
    reported: list[str] = []
    timer = worker.PhaseTimer(reported.append)
    for text in (
        "loading",
        "calibrating layer 1 of 2",
        "calibrating layer 1 of 2",
        "calibrating layer 2 of 2",
        "saving",
    ):
        timer.report(text)
    assert reported == ["loading", "calibrating layer 1 of 2", "calibrating layer 2 of 2", "saving"]
    assert timer.seconds() == {"loading": 1.0, "calibrating": 3.0, "saving": 2.0}
