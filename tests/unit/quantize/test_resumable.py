"""Facts about llmcompressor's work interrupted and taken up again, shown with a small random Llama of two layers."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.attempts import Attempt
from hpcq.core.work import QuantizeWork
from hpcq.quantize.worker import digest_of_checkpoint, quantize
from tests.unit.quantize.conftest import MakeWork, live_attempt

active_session = pytest.importorskip("llmcompressor").active_session
safetensors = pytest.importorskip("safetensors")

CheckpointOf = Callable[[str], Path]
BLOCKS = {"fp8": 3, "gptq-w4a16-g64": 3, "gptq-w8a16": 3, "smoothquant-w8a8": 6, "awq-w4a16-g64": 3}
"""What precedes the layers, and two layers, in every pass that calibrates."""


class Interruption(Exception):
    """Ends a quantization in the midst."""


def interrupted(work: QuantizeWork, folder: Path, *, after: int) -> Path:
    """Quantize until so many blocks are committed; the folder that holds them."""

    class Mortal(Attempt):
        def update(self, **changes: Any) -> None:
            super().update(**changes)
            if changes.get("added") == after:
                raise Interruption

    with pytest.raises(Interruption):
        quantize(work, Mortal(folder, live_attempt(folder).record))
    active_session().reset()  # a killed process leaves no session behind
    checkpoint = Path(work.checkpoint_path)
    assert not checkpoint.exists()
    return checkpoint.with_name(checkpoint.name + ".blocks")


def counts(attempt: Attempt) -> tuple[int, int]:
    """Blocks that an attempt restored, and that it made."""
    return attempt.record.facts["blocks_restored"], attempt.record.facts["blocks_committed"]


def warnings_of(checkpoint: Path) -> list[str]:
    """The layers that GPTQ could not do, in the metadata's words."""
    told = json.loads((checkpoint / "hpcq.json").read_text(encoding="utf-8"))["warnings"]
    return [warning for warning in told if warning.startswith("Hessian inversion failed for")]


@pytest.mark.parametrize("name", BLOCKS)
def test_a_resumed_quantization_gives_the_same_bits(
    name: str, make_work: MakeWork, checkpoint_of: CheckpointOf, attempt: Attempt, tmp_path: Path
) -> None:
    """Interrupted within its last pass and resumed, every scheme gives the checkpoint of an undisturbed run."""
    work = make_work(name, tmp_path / "resumed")
    after = BLOCKS[name] - 1
    blocks = interrupted(work, tmp_path / "first", after=after)
    quantize(work, attempt)
    assert counts(attempt) == (after, 1)
    assert attempt.record.added == 1
    assert digest_of_checkpoint(tmp_path / "resumed") == digest_of_checkpoint(checkpoint_of(name))
    assert not blocks.exists()


@pytest.mark.parametrize("name", ["fp8", "smoothquant-w8a8", "awq-w4a16-g64"])
def test_our_pipeline_changes_no_bit(
    name: str,
    make_work: MakeWork,
    checkpoint_of: CheckpointOf,
    attempt: Attempt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """llmcompressor's own pipelines, asked for by name, give the same checkpoint as the one that keeps blocks."""
    monkeypatch.setattr("hpcq.quantize.resumable_pipeline.PIPELINE", "independent")
    quantize(make_work(name, tmp_path / "theirs"), attempt)
    assert attempt.record.added == 0
    assert digest_of_checkpoint(tmp_path / "theirs") == digest_of_checkpoint(checkpoint_of(name))


def test_with_all_blocks_there_nothing_is_calibrated(
    make_work: MakeWork, checkpoint_of: CheckpointOf, attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it saved, a quantization puts all blocks back and makes no pass through the model."""
    from llmcompressor.pipelines.sequential.helpers import Subgraph

    work = make_work("smoothquant-w8a8", tmp_path / "resumed")
    interrupted(work, tmp_path / "first", after=6)
    monkeypatch.setattr(Subgraph, "forward", lambda *_, **__: pytest.fail("a pass through the model"))
    quantize(work, attempt)
    assert counts(attempt) == (6, 0)
    assert digest_of_checkpoint(tmp_path / "resumed") == digest_of_checkpoint(checkpoint_of("smoothquant-w8a8"))


def test_a_damaged_block_and_those_after_it_are_made_again(
    make_work: MakeWork,
    checkpoint_of: CheckpointOf,
    attempt: Attempt,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A block with a flipped bit is set aside with a reason, and the checkpoint comes out the same."""
    work = make_work("gptq-w4a16-g64", tmp_path / "resumed")
    damaged = interrupted(work, tmp_path / "first", after=3) / "0-GPTQModifier-001.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-100] ^= 1
    damaged.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        quantize(work, attempt)
    assert counts(attempt) == (1, 2)
    assert f"{damaged}: set aside: it is cut short or altered" in caplog.text
    assert digest_of_checkpoint(tmp_path / "resumed") == digest_of_checkpoint(checkpoint_of("gptq-w4a16-g64"))


def test_blocks_of_another_scheme_are_not_used(
    make_work: MakeWork, checkpoint_of: CheckpointOf, attempt: Attempt, tmp_path: Path
) -> None:
    """Blocks whose address is another's are made anew, though their names fit."""
    other = dataclasses.replace(make_work("gptq-w4a16-g64", tmp_path).variant.scheme, damping=0.5)
    interrupted(make_work("gptq-w4a16-g64", tmp_path / "x", scheme=other), tmp_path / "first", after=2)
    quantize(make_work("gptq-w4a16-g64", tmp_path / "x"), attempt)
    assert counts(attempt) == (0, 3)
    assert digest_of_checkpoint(tmp_path / "x") == digest_of_checkpoint(checkpoint_of("gptq-w4a16-g64"))


def test_a_warning_of_an_earlier_attempt_is_not_lost(make_work: MakeWork, attempt: Attempt, tmp_path: Path) -> None:
    """The resumed checkpoint's metadata warns of layers that were rounded to nearest in the attempt before."""
    sick = dataclasses.replace(make_work("gptq-w4a16-g64", tmp_path).variant.scheme, damping=-2.0)
    undisturbed = make_work("gptq-w4a16-g64", tmp_path / "undisturbed", scheme=sick)
    quantize(undisturbed, live_attempt(tmp_path / "whole"))
    work = make_work("gptq-w4a16-g64", tmp_path / "resumed", scheme=sick)
    interrupted(work, tmp_path / "first", after=2)
    quantize(work, attempt)
    (told,) = warnings_of(tmp_path / "resumed")
    assert [told] == warnings_of(tmp_path / "undisturbed")
    assert "14/14 modules" in told


def test_a_block_holds_what_changed_and_no_more(make_work: MakeWork, tmp_path: Path) -> None:
    """A block is a safetensors file: GPTQ's has the layer's weights and scales, and calibrated FP8's has no weights."""
    found = {}
    for name in ("gptq-w8a16", "fp8"):
        folder = interrupted(make_work(name, tmp_path / name), tmp_path / f"{name}.attempts", after=2)
        (first, second) = sorted(folder.iterdir())
        with safetensors.safe_open(first, "np") as before_the_layers, safetensors.safe_open(second, "np") as layer:
            assert not before_the_layers.keys()
            found[name] = {key.removeprefix("model.layers.0.") for key in layer.keys()}  # noqa: SIM118  no mapping
    assert {"mlp.up_proj.weight", "mlp.up_proj.weight_scale"} < found["gptq-w8a16"]
    assert {"mlp.up_proj.weight_scale", "mlp.up_proj.input_scale"} < found["fp8"]
    assert "mlp.up_proj.weight" not in found["fp8"]
    assert not any("norm" in key for key in found["gptq-w8a16"])
