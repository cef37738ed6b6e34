"""Interrupted and resumed quantizations with llmcompressor, tested on a small random Llama of two layers."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.attempts import Attempt
from hpcq.core.work_records import QuantizeWork
from hpcq.quantize.worker import digest_of_checkpoint, quantize
from tests.unit.quantize.conftest import MakeWork, live_attempt

active_session = pytest.importorskip("llmcompressor").active_session
safetensors = pytest.importorskip("safetensors")

CheckpointOf = Callable[[str], Path]
BLOCKS = {"fp8": 3, "gptq-w4a16-g64": 3, "gptq-w8a16": 3, "smoothquant-w8a8": 6, "awq-w4a16-g64": 3}
"""Number of blocks: what precedes the layers, and two layers, in each pass that calibrates."""


class InterruptionError(Exception):
    """Interrupts a quantization."""


def interrupt(work: QuantizeWork, folder: Path, *, after: int) -> Path:
    """Quantize until `after` blocks are committed; return the folder of the blocks."""

    class InterruptedAttempt(Attempt):
        def update(self, **changes: Any) -> None:
            super().update(**changes)
            if changes.get("committed") == after:
                raise InterruptionError

    with pytest.raises(InterruptionError):
        quantize(work, InterruptedAttempt(folder, live_attempt(folder).record))
    active_session().reset()  # a killed process leaves no session behind
    checkpoint = Path(work.checkpoint_path)
    assert not checkpoint.exists()
    return checkpoint.with_name(checkpoint.name + ".blocks")


def counts(attempt: Attempt) -> tuple[int, int]:
    """Numbers of blocks that an attempt restored and committed."""
    return attempt.record.facts["blocks_restored"], attempt.record.facts["blocks_committed"]


def warnings_of(checkpoint: Path) -> list[str]:
    """The metadata's warnings about layers that GPTQ failed to quantize."""
    warnings = json.loads((checkpoint / "hpcq.json").read_text(encoding="utf-8"))["warnings"]
    return [warning for warning in warnings if warning.startswith("Hessian inversion failed for")]


def fallbacks_of(checkpoint: Path) -> tuple[int, int]:
    """How many layers GPTQ rounded to nearest, and of how many."""
    found = json.loads((checkpoint / "hpcq.json").read_text(encoding="utf-8"))["fallbacks"]["gptq"]
    return found["layers"], found["of"]


@pytest.mark.parametrize("name", BLOCKS)
def test_a_resumed_quantization_gives_the_same_bits(
    name: str, make_work: MakeWork, checkpoint_of: CheckpointOf, attempt: Attempt, tmp_path: Path
) -> None:
    """Interrupted within its last pass and resumed, every scheme gives the checkpoint of an uninterrupted run."""
    work = make_work(name, tmp_path / "resumed")
    after = BLOCKS[name] - 1
    blocks = interrupt(work, tmp_path / "first", after=after)
    quantize(work, attempt)
    assert counts(attempt) == (after, 1)
    assert attempt.record.committed == 1
    assert digest_of_checkpoint(tmp_path / "resumed") == digest_of_checkpoint(checkpoint_of(name))
    assert not blocks.exists()


@pytest.mark.parametrize("name", ["fp8", "smoothquant-w8a8", "awq-w4a16-g64"])
def test_the_resumable_pipeline_changes_no_bit(
    name: str,
    make_work: MakeWork,
    checkpoint_of: CheckpointOf,
    attempt: Attempt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """llmcompressor's own pipelines, selected by name, give the same checkpoint as the resumable one."""
    # They do not report the end of a transform, after which the weights to compare with are those that it has scaled.
    monkeypatch.setattr("hpcq.quantize.weight_check.compare_rounded", lambda *_: {})
    monkeypatch.setattr("hpcq.quantize.resumable_pipeline.PIPELINE", "independent")
    quantize(make_work(name, tmp_path / "theirs"), attempt)
    assert attempt.record.committed == 0
    assert digest_of_checkpoint(tmp_path / "theirs") == digest_of_checkpoint(checkpoint_of(name))


def test_with_all_blocks_restored_nothing_is_calibrated(
    make_work: MakeWork, checkpoint_of: CheckpointOf, attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quantization that was killed while saving restores all blocks and runs no forward pass."""
    from llmcompressor.pipelines.sequential.helpers import Subgraph

    work = make_work("smoothquant-w8a8", tmp_path / "resumed")
    interrupt(work, tmp_path / "first", after=6)
    monkeypatch.setattr(Subgraph, "forward", lambda *_, **__: pytest.fail("a forward pass"))
    quantize(work, attempt)
    assert counts(attempt) == (6, 0)
    assert digest_of_checkpoint(tmp_path / "resumed") == digest_of_checkpoint(checkpoint_of("smoothquant-w8a8"))


def test_a_damaged_block_and_those_after_it_are_recomputed(
    make_work: MakeWork,
    checkpoint_of: CheckpointOf,
    attempt: Attempt,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A block with a flipped bit is set aside with a reason, and the checkpoint has the same bits."""
    work = make_work("gptq-w4a16-g64", tmp_path / "resumed")
    damaged = interrupt(work, tmp_path / "first", after=3) / "0-GPTQModifier-001.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-100] ^= 1
    damaged.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        quantize(work, attempt)
    assert counts(attempt) == (1, 2)
    assert f"{damaged}: set aside: it is truncated or modified" in caplog.text
    assert digest_of_checkpoint(tmp_path / "resumed") == digest_of_checkpoint(checkpoint_of("gptq-w4a16-g64"))


def test_blocks_of_another_scheme_are_not_used(
    make_work: MakeWork, checkpoint_of: CheckpointOf, attempt: Attempt, tmp_path: Path
) -> None:
    """Blocks with another address are recomputed although their names match."""
    other = dataclasses.replace(make_work("gptq-w4a16-g64", tmp_path).variant.scheme, damping=0.5)
    interrupt(make_work("gptq-w4a16-g64", tmp_path / "x", scheme=other), tmp_path / "first", after=2)
    quantize(make_work("gptq-w4a16-g64", tmp_path / "x"), attempt)
    assert counts(attempt) == (0, 3)
    assert digest_of_checkpoint(tmp_path / "x") == digest_of_checkpoint(checkpoint_of("gptq-w4a16-g64"))


def test_a_warning_of_an_earlier_attempt_is_not_lost(make_work: MakeWork, attempt: Attempt, tmp_path: Path) -> None:
    """The resumed checkpoint's metadata warns about layers that were rounded to nearest in the previous attempt."""
    failing = dataclasses.replace(make_work("gptq-w4a16-g64", tmp_path).variant.scheme, damping=-2.0)

    def work_at(name: str) -> QuantizeWork:
        work = make_work("gptq-w4a16-g64", tmp_path / name, scheme=failing)
        return dataclasses.replace(work, max_fallback_share=1.0)

    quantize(work_at("uninterrupted"), live_attempt(tmp_path / "whole"))
    work = work_at("resumed")
    interrupt(work, tmp_path / "first", after=2)
    quantize(work, attempt)
    (warning,) = warnings_of(tmp_path / "resumed")
    assert [warning] == warnings_of(tmp_path / "uninterrupted")
    assert "14/14 modules" in warning
    assert fallbacks_of(tmp_path / "resumed") == fallbacks_of(tmp_path / "uninterrupted") == (14, 14)


def test_a_block_has_only_the_changed_tensors(make_work: MakeWork, tmp_path: Path) -> None:
    """A block is a safetensors file: GPTQ's has the layer's weights and scales, that of static FP8 has no weights."""
    found = {}
    for name in ("gptq-w8a16", "fp8"):
        folder = interrupt(make_work(name, tmp_path / name), tmp_path / f"{name}.attempts", after=2)
        (first, second) = sorted(folder.iterdir())
        with safetensors.safe_open(first, "np") as before_the_layers, safetensors.safe_open(second, "np") as layer:
            assert not before_the_layers.keys()
            found[name] = {key.removeprefix("model.layers.0.") for key in layer.keys()}  # noqa: SIM118  no mapping
    assert {"mlp.up_proj.weight", "mlp.up_proj.weight_scale"} < found["gptq-w8a16"]
    assert {"mlp.up_proj.weight_scale", "mlp.up_proj.input_scale"} < found["fp8"]
    assert "mlp.up_proj.weight" not in found["fp8"]
    assert not any("norm" in key for key in found["gptq-w8a16"])
