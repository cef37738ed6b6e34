"""Tiny models of many families, each with one scheme: a checked checkpoint, or a refusal before anything is written.

Each seed selects other schemes. The whole matrix is `python -m tests.quantize_matrix`.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.schemes import find_scheme
from hpcq.core.attempts import Attempt, AttemptRecord, utc_now
from hpcq.core.work_records import Calibration, EvaluateWork, Model, QuantizeWork, Variant
from hpcq.evaluate.backends.transformers.backend import AccelerateBackend
from hpcq.evaluate.backends.transformers.dequantization import InputRounding
from hpcq.quantize.worker import digest_of_checkpoint, quantize
from hpcq.verify.marks import MarkKind, VariantFacts, derive_marks
from tests.families import FAMILIES
from tests.quantize_matrix import SCHEMES, run_pair
from tests.staged import staged_model
from tests.tiny_llama import write_calibration

pytest.importorskip("torch")

SEED = int(os.environ.get("HPCQ_FAMILIES_SEED", "1"))
_random = random.Random(SEED)  # noqa: S311  reproducible, not secret
PAIRS = [(family, _random.choice(SCHEMES)) for family in FAMILIES]
MOE_FAMILIES = ("mixtral", "qwen3_moe", "deepseek_v3", "jamba")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of models and checkpoints."""
    staged_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def calibration(folder: Path) -> Calibration:
    """A small calibration set."""
    return write_calibration(folder / "text.jsonl")


@pytest.mark.parametrize(("family", "scheme"), PAIRS)
def test_a_family_is_quantized_as_declared_or_refused(
    family: str, scheme: str, folder: Path, calibration: Calibration
) -> None:
    """The outcome is the expected one; a refusal is one sentence and leaves no checkpoint."""
    outcome = run_pair(family, scheme, folder, calibration)
    assert outcome.is_expected, outcome.reason
    if outcome.facts is None:
        assert outcome.reason.startswith("UserInputError: ")
        assert outcome.reason.endswith(".")
        assert "\n" not in outcome.reason
        assert not (folder / "checkpoints" / family / scheme).exists()
        return
    coverage, check = outcome.facts["coverage"], outcome.facts["self_check"]
    assert isinstance(coverage, dict)
    assert isinstance(check, dict)
    assert coverage["quantized_linears"] > coverage["unquantized_linears"]
    assert check["reloaded"]["difference"] <= check["reloaded"]["tolerance"] < check["quantization"] * 10


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_experts_are_quantized_one_by_one(family: str, folder: Path, calibration: Calibration) -> None:
    """Every projection of every expert is quantized, routers are not, and the routed tokens are recorded.

    Observed: Jamba's router was quantized, and every expert of Mixtral was random: mixtral fp8-dynamic 45.0 (+10.0).
    """
    outcome = run_pair(family, "gptq-w8a16", folder, calibration)
    assert outcome.facts, outcome.reason
    coverage, experts = outcome.facts["coverage"], outcome.facts["experts"]
    assert isinstance(coverage, dict)
    assert isinstance(experts, dict)
    projections = {
        pattern: count for pattern, count in coverage["quantized_modules"].items() if ".experts.*." in pattern
    }
    assert len(projections) == 3
    assert set(projections.values()) == {experts["experts"]}
    assert not [pattern for pattern in coverage["quantized_modules"] if pattern.endswith((".gate", ".router"))]
    assert experts["calibrated_with"].startswith("all tokens")
    tokens = calibration.samples * calibration.sequence_length
    assert (
        0 <= experts["routed_tokens_min"] <= experts["routed_tokens_median"] <= experts["routed_tokens_max"] <= tokens
    )


class InterruptionError(Exception):
    """Interrupts a quantization."""


class InterruptedAttempt(Attempt):
    """An attempt that ends after its second block."""

    def update(self, **changes: Any) -> None:
        """Record `changes`, then raise."""
        super().update(**changes)
        if changes.get("committed") == 2:
            raise InterruptionError


def test_an_interrupted_mixture_of_experts_is_resumed(folder: Path, calibration: Calibration, tmp_path: Path) -> None:
    """Interrupted and resumed, the checkpoint and its counts of tokens are those of an uninterrupted run."""
    whole = run_pair("mixtral", "gptq-w8a16", folder, calibration)
    assert whole.facts
    scheme = find_scheme("gptq-w8a16")
    assert scheme
    model = Model(id="tests/mixtral", path=str(folder / "models" / "mixtral"))
    work = QuantizeWork(
        variant=Variant(model=model, scheme=scheme, calibration=calibration),
        checkpoint_path=str(tmp_path / "resumed"),
        device="cpu",
    )
    record = AttemptRecord(unit="quantize.x", attempt=1, job_id="1", node="here", pid=1, start=utc_now())
    with pytest.raises(InterruptionError):
        quantize(work, InterruptedAttempt(tmp_path / "first", record))
    attempt = Attempt(tmp_path / "second", record)
    quantize(work, attempt)
    assert (attempt.record.facts["blocks_restored"], attempt.record.facts["blocks_committed"]) == (2, 1)
    facts = json.loads((tmp_path / "resumed" / "hpcq.json").read_text(encoding="utf-8"))
    assert facts["experts"] == whole.facts["experts"]
    expected = digest_of_checkpoint(folder / "checkpoints" / "mixtral" / "gptq-w8a16")
    assert digest_of_checkpoint(tmp_path / "resumed") == expected


@pytest.mark.parametrize(("family", "counts"), [("mixtral", "24 of 32 quantized layers"), ("llama", "")])
def test_unrounded_activations_of_experts_are_recorded(
    family: str, counts: str, folder: Path, calibration: Calibration
) -> None:
    """One layer that rounds its activations is no evidence for all: transformers computes experts without rounding.

    Observed: experts of MoE W8A8 kept 16-bit activations; the check said `any` where it must say `all`.
    """
    assert run_pair(family, "fp8-dynamic", folder, calibration).facts
    model, scheme = Model(id=f"tests/{family}", path=str(folder / "models" / family)), find_scheme("fp8-dynamic")
    assert scheme
    work = EvaluateWork(
        variant=Variant(model=model, scheme=scheme),
        tasks=(),
        backend="accelerate",
        dtype="bfloat16",
        checkpoint_path=str(folder / "checkpoints" / family / "fp8-dynamic"),
        segments_path=str(folder / "segments"),
        device="cpu",
    )
    backend = AccelerateBackend(work)
    backend.load()
    facts = backend.describe()
    assert facts["unrounded_activations"] == counts
    marks = derive_marks(VariantFacts(segments=[facts]))
    assert [mark.kind for mark in marks] == ([MarkKind.UNROUNDED_ACTIVATIONS] if counts else [])


@pytest.mark.parametrize(
    ("scheme_name", "options", "replaced"),
    [("smoothquant-w8a8", (("int8_divisor", 127),), 14), ("smoothquant-w8a8", (), 0), ("nvfp4", (), 0)],
)
def test_activations_are_rounded_as_the_planned_options_say(
    scheme_name: str, options: tuple[tuple[str, int], ...], replaced: int, folder: Path, calibration: Calibration
) -> None:
    """With the option, all 14 layers round INT8 activations as kernels do; without it, as compressed-tensors does."""
    assert run_pair("llama", scheme_name, folder, calibration).facts
    scheme = find_scheme(scheme_name)
    assert scheme
    work = EvaluateWork(
        variant=Variant(model=Model(id="tests/llama", path=str(folder / "models" / "llama")), scheme=scheme),
        tasks=(),
        backend="accelerate",
        dtype="bfloat16",
        options=options,
        checkpoint_path=str(folder / "checkpoints" / "llama" / scheme_name),
        segments_path=str(folder / "segments"),
        device="cpu",
    )
    backend = AccelerateBackend(work)
    backend.load()
    layers = list(backend._lm.model.modules())
    assert sum(InputRounding.of(layer) is not None for layer in layers) == replaced
    assert backend.describe()["unrounded_activations"] == ""
