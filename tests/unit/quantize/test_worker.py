"""Facts about the quantizing worker that hold for every tool, shown with the one that needs no model."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcq.core.attempts import Attempt, read_attempts
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.files import digest_of_file
from hpcq.core.work import Model, QuantizeWork, Scheme, Variant
from hpcq.quantize import worker
from hpcq.quantize.interface import quantizer
from hpcq.quantize.synthetic import PAUSE_VARIABLE

REHEARSAL = Scheme(name="synthetic-w4a16", tool="synthetic", method="synthetic", weights="int4", activations="bf16")
LIGHT = "import sys; print(sorted({'torch', 'transformers', 'llmcompressor', 'numpy', 'h5py'} & set(sys.modules)))"


def work_in(folder: Path, *, scheme: Scheme = REHEARSAL, **variant: object) -> QuantizeWork:
    """A rehearsal's work, unless said otherwise."""
    fields = {"model": Model(id="some/model"), **variant}
    return QuantizeWork(
        variant=Variant(scheme=scheme, **fields),  # type: ignore[arg-type]
        checkpoint_path=str(folder / "checkpoints" / "model" / "scheme"),
    )


def base_in(folder: Path, **config: object) -> Model:
    """A model whose folder has a configuration and a tokenizer's file, and nothing else."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
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


def test_a_rehearsal_writes_a_marked_checkpoint_without_a_model(tmp_path: Path, attempt: Attempt) -> None:
    """The synthetic tool needs no base checkpoint, and its metadata says that it is a rehearsal."""
    work = work_in(tmp_path)
    worker.quantize(work, attempt)
    folder = Path(work.checkpoint_path)
    record = json.loads((folder / "hpcq.json").read_text(encoding="utf-8"))
    assert record["rehearsal"] is True
    assert (record["schema"], record["address"]) == (1, work.variant.address)
    assert set(record["seconds"]) == {"calibrating", "saving"}
    assert record["peak_memory_bytes"] > 0
    assert sorted(item.name for item in folder.iterdir()) == ["config.json", "hpcq.json", "model.safetensors"]


def test_a_rehearsal_repeats_and_differs_by_scheme(tmp_path: Path, attempt: Attempt) -> None:
    """Equal schemes give equal bytes, others give others."""
    schemes = (REHEARSAL, REHEARSAL, dataclasses.replace(REHEARSAL, weights="int8"))
    digests = []
    for number, scheme in enumerate(schemes):
        work = work_in(tmp_path / str(number), scheme=scheme)
        worker.quantize(work, attempt)
        digests.append(digest_of_file(Path(work.checkpoint_path) / "model.safetensors"))
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_a_checkpoint_that_exists_is_left_alone(tmp_path: Path, attempt: Attempt) -> None:
    """A folder that exists is whole: the worker returns at once, says so, and touches nothing."""
    work = work_in(tmp_path, scheme=GROUPED)
    Path(work.checkpoint_path).mkdir(parents=True)
    worker.quantize(work, attempt)
    assert list(Path(work.checkpoint_path).iterdir()) == []
    (record,) = read_attempts(attempt.path.parent)["quantize.x"]
    assert (record.phase, record.facts) == ("the checkpoint exists already", {"existed": True})


def test_a_killed_worker_leaves_no_checkpoint(tmp_path: Path) -> None:
    """Killed at its work it leaves no folder of the checkpoint's name, and the next worker makes it whole."""
    work = work_in(tmp_path)
    code = (
        "import sys; from pathlib import Path\n"
        "from hpcq.core.attempts import Attempt, AttemptRecord\n"
        "from hpcq.quantize.worker import quantize\n"
        "from hpcq.core.work import *\n"
        f"record = AttemptRecord(unit='quantize.y', attempt=1, job_id='1', node='n', pid=1, start='')\n"
        f"quantize({work!r}, Attempt(Path({str(tmp_path / 'attempts')!r}), record))\n"
    ).replace("<Kind.QUANTIZE: 'quantize'>", "Kind.QUANTIZE")
    slow = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, PAUSE_VARIABLE: "60"})
    parent = Path(work.checkpoint_path).parent
    patience = time.monotonic() + 20
    while not (parent.is_dir() and any(parent.iterdir())) and time.monotonic() < patience:
        time.sleep(0.02)
    slow.kill()
    slow.wait()
    assert any(parent.iterdir())
    assert not Path(work.checkpoint_path).exists()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
    assert (Path(work.checkpoint_path) / "hpcq.json").is_file()


def test_groups_are_checked_before_anything_is_loaded(tmp_path: Path, attempt: Attempt) -> None:
    """A misfit is refused from config.json alone: there are no weights here that could be loaded."""
    model = base_in(tmp_path / "base", hidden_size=576, intermediate_size=1536, num_attention_heads=9)
    work = work_in(tmp_path, scheme=GROUPED, model=model)
    with pytest.raises(UserInputError) as refusal:
        worker.quantize(work, attempt)
    assert str(refusal.value) == (
        "'gptq-w4a16' cannot quantize SmolLM2-135M: 576 is not a multiple of 128 (model.layers.*.self_attn.q_proj). "
        "Try 'gptq-w4a16-g64'."
    )
    assert not Path(work.checkpoint_path).parent.exists()


def test_a_quantized_base_is_refused(tmp_path: Path, attempt: Attempt) -> None:
    """A checkpoint that is quantized already is not quantized again."""
    model = base_in(tmp_path / "base", hidden_size=128, quantization_config={"quant_method": "gptq"})
    with pytest.raises(UserInputError, match=r"is quantized already: name an unquantized checkpoint\.$"):
        worker.quantize(work_in(tmp_path, scheme=GROUPED, model=model), attempt)


def test_a_missing_base_is_named(tmp_path: Path, attempt: Attempt) -> None:
    """Without a base checkpoint the sentence names the place and the cure."""
    model = Model(id="org/m", path=str(tmp_path / "nowhere"))
    with pytest.raises(SetupError, match=r"nowhere: no config.json of org/m is there: stage the manifest"):
        worker.quantize(work_in(tmp_path, scheme=GROUPED, model=model), attempt)


def test_a_base_without_tokenizer_is_refused(tmp_path: Path, attempt: Attempt) -> None:
    """A checkpoint that nobody could evaluate is not begun."""
    model = base_in(tmp_path / "base", hidden_size=128)
    (tmp_path / "base" / "tokenizer.json").unlink()
    with pytest.raises(SetupError, match="has no tokenizer"):
        worker.quantize(work_in(tmp_path, scheme=GROUPED, model=model), attempt)


@pytest.mark.parametrize("planned", [("pytest", "0.0.1"), ("no-such-distribution", "1.0")])
def test_other_versions_than_planned_are_refused(tmp_path: Path, attempt: Attempt, planned: tuple[str, str]) -> None:
    """The address promises versions of tools: an environment with others does not make the checkpoint."""
    with pytest.raises(SetupError, match=f"{planned[0]} .*planned with {planned[1]}: make the environment again"):
        worker.quantize(work_in(tmp_path, versions=(planned,)), attempt)


def test_local_version_suffixes_do_not_count(tmp_path: Path, attempt: Attempt) -> None:
    """A CPU build of the planned version ('+cpu') is the planned version."""
    versions = (("pytest", f"{pytest.__version__}+cpu"),)
    work = work_in(tmp_path, versions=versions)
    worker.quantize(work, attempt)
    assert Path(work.checkpoint_path).is_dir()


def test_every_file_of_a_checkpoint_is_as_readable_as_a_new_file(tmp_path: Path, attempt: Attempt) -> None:
    """Checkpoints are shared: no file keeps permissions narrower than the umask asks for."""
    work = work_in(tmp_path)
    worker.quantize(work, attempt)
    fresh = tmp_path / "fresh"
    fresh.touch()
    modes = {item.stat().st_mode for item in Path(work.checkpoint_path).iterdir()}
    assert modes == {fresh.stat().st_mode}


def test_an_unknown_tool_is_named_with_those_that_exist() -> None:
    """A tool that is not there is refused with the list of those that are."""
    with pytest.raises(UserInputError, match=r"^'autogptq' is not a quantizing tool: choose llmcompressor, synthetic"):
        quantizer("autogptq")


def test_a_third_party_tool_is_found(tmp_path: Path) -> None:
    """An installed distribution adds a quantizer by the entry point group hpcq.quantizers alone."""
    info = tmp_path / "their_tool-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-tool\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[hpcq.quantizers]\ntheirs = their_tool:Theirs\n", encoding="utf-8")
    (tmp_path / "their_tool.py").write_text("class Theirs:\n    def quantize(self, job): ...\n", encoding="utf-8")
    code = "from hpcq.quantize.interface import quantizer; print(type(quantizer('theirs')).__module__)"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    answer = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "their_tool"


def test_a_rehearsal_imports_no_heavy_library(tmp_path: Path) -> None:
    """Worker, door, fit, recipes and the synthetic tool bring in neither torch nor numpy."""
    modules = "worker, door, fit, recipes, calibration, synthetic"
    code = f"from hpcq.quantize import {modules}; {LIGHT}"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert answer.stdout.strip() == "[]"


def test_phases_are_timed_and_reported_sparingly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is booked on a report's first word; within a phase a report passes every two seconds at most."""
    moments = iter([0.0, 0.0, 1.0, 1.5, 3.5, 4.0, 6.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(moments))
    shown: list[str] = []
    clock = worker.PhaseClock(shown.append)
    for text in (
        "loading",
        "calibrating layer 1 of 2",
        "calibrating layer 1 of 2",
        "calibrating layer 2 of 2",
        "saving",
    ):
        clock.report(text)
    assert shown == ["loading", "calibrating layer 1 of 2", "calibrating layer 2 of 2", "saving"]
    assert clock.seconds() == {"loading": 1.0, "calibrating": 3.0, "saving": 2.0}
