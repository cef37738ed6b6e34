"""Fixtures: a small random Llama with a byte tokenizer, a calibration text, and works that quantize the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.schemes import find_scheme
from hpcq.core.attempts import Attempt, AttemptRecord, utc_now
from hpcq.core.work_records import Calibration, Model, QuantizeWork, Scheme, Variant
from hpcq.quantize.worker import quantize
from tests.tiny_llama import write_base, write_calibration

FP8_DYNAMIC = Scheme(
    name="fp8-dynamic",
    tool="llmcompressor",
    method="rtn",
    weights="fp8_e4m3",
    activations="fp8_e4m3",
    dynamic=True,
)
FP8_STATIC = dataclasses.replace(FP8_DYNAMIC, name="fp8", granularity="tensor", dynamic=False, needs_calibration=True)
GPTQ_W4A16 = Scheme(
    name="gptq-w4a16-g64",
    tool="llmcompressor",
    method="gptq",
    weights="int4",
    activations="bf16",
    granularity="group",
    group_size=64,
    needs_calibration=True,
)
GPTQ_W8A16 = dataclasses.replace(GPTQ_W4A16, name="gptq-w8a16", weights="int8", granularity="channel", group_size=None)
SMOOTHQUANT_W8A8 = dataclasses.replace(
    GPTQ_W8A16,
    name="smoothquant-w8a8",
    method="smoothquant",
    activations="int8",
    dynamic=True,
    smoothing_strength=0.8,
)
AWQ_W4A16 = dataclasses.replace(GPTQ_W4A16, name="awq-w4a16-g64", method="awq", symmetric=False)
SCHEMES = {
    scheme.name: scheme for scheme in (FP8_DYNAMIC, FP8_STATIC, GPTQ_W4A16, GPTQ_W8A16, SMOOTHQUANT_W8A8, AWQ_W4A16)
}
SCHEMES |= {
    scheme.name: scheme
    for name in ("fp8-block", "fp8-dynamic-kv8", "gptq-nvfp4", "mxfp4", "mxfp8", "nvfp4", "nvfp4-w4a16", "w4a8-fp8")
    if (scheme := find_scheme(name))
}

MakeWork = Callable[..., QuantizeWork]


@pytest.fixture(scope="session")
def base_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers and 128 hidden features in bfloat16, with random weights."""
    pytest.importorskip("torch")
    return write_base(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """Eight sequences of 64 tokens from a text of a hundred short passages."""
    return write_calibration(tmp_path_factory.mktemp("calibration") / "text.jsonl")


@pytest.fixture(scope="session")
def make_work(base_checkpoint: Path, calibration: Calibration) -> MakeWork:
    """Factory of works that quantize the small Llama with a named scheme; keywords replace fields of the variant."""

    def make(name: str, checkpoint: Path, **variant: Any) -> QuantizeWork:
        scheme = SCHEMES[name]
        fields: dict[str, Any] = {
            "model": Model(id="tests/tiny-llama", path=str(base_checkpoint)),
            "scheme": scheme,
            "calibration": calibration if scheme.needs_calibration else None,
            **variant,
        }
        return QuantizeWork(variant=Variant(**fields), checkpoint_path=str(checkpoint), device="cpu")

    return make


@pytest.fixture(scope="session")
def checkpoint_of(make_work: MakeWork, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The small Llama's checkpoint for a scheme's name, created once for all tests that only read it."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def get(name: str) -> Path:
        if not (folder / name).exists():
            quantize(make_work(name, folder / name), live_attempt(folder / "attempts"))
        return folder / name

    return get


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    """A running attempt with its record in the test's folder."""
    return live_attempt(tmp_path / "attempts")


def live_attempt(folder: Path) -> Attempt:
    """An attempt that has just started."""
    return Attempt(folder, AttemptRecord(unit="quantize.x", attempt=1, job_id="1", node="here", pid=1, start=utc_now()))
