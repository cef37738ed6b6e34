"""Layers that a tool quantizes by a simpler method than the scheme's: counted, shown, and refused if there are many."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from hpcq.core.attempts import Attempt
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.work_records import Calibration, QuantizeWork
from hpcq.quantize.fallbacks import Fallbacks
from hpcq.quantize.worker import quantize
from hpcq.verify.marks import MarkKind, VariantFacts, derive_marks

pytest.importorskip("torch")

MakeWork = Callable[..., QuantizeWork]


def without_damping(make_work: MakeWork, calibration: Calibration, path: Path) -> QuantizeWork:
    """GPTQ whose Hessians have rank 8 of 128 or 256, because a manifest asks for no damping and has little text."""
    scheme = dataclasses.replace(make_work("gptq-w4a16-g64", path).variant.scheme, damping=0.0)
    little = dataclasses.replace(calibration, samples=1, sequence_length=8)
    return make_work("gptq-w4a16-g64", path, scheme=scheme, calibration=little)


def test_gptq_without_usable_hessians_is_refused(
    make_work: MakeWork, calibration: Calibration, attempt: Attempt, tmp_path: Path
) -> None:
    """The unit fails after one block. Observed: 14 of 14 layers were rounded to nearest, and the table said GPTQ."""
    work = without_damping(make_work, calibration, tmp_path / "checkpoints" / "x")
    with pytest.raises(UserInputError) as caught:
        quantize(work, attempt)
    assert str(caught.value).startswith("GPTQ could not invert the Hessians of 7 of 14 layers (model.layers.*.mlp.")
    assert str(caught.value).endswith("at most 1% are accepted: use more calibration text (calibration.samples, "
                                      "calibration.sequence_length) or a larger damping, or increase "
                                      "quantize.max_fallback_share.")  # fmt: skip
    assert not (tmp_path / "checkpoints" / "x").exists()


def test_accepted_fallbacks_are_marked(
    make_work: MakeWork, calibration: Calibration, attempt: Attempt, tmp_path: Path
) -> None:
    """With quantize.max_fallback_share = 1 there is a checkpoint with a mark, at the same address."""
    work = without_damping(make_work, calibration, tmp_path / "x")
    quantize(dataclasses.replace(work, max_fallback_share=1.0), attempt)
    facts = json.loads((tmp_path / "x" / "hpcq.json").read_text(encoding="utf-8"))
    assert facts["address"] == work.variant.address
    assert facts["fallbacks"]["gptq"]["names"]["model.layers.*.mlp.down_proj"] == 2
    (mark,) = derive_marks(VariantFacts(checkpoint=facts))
    assert mark.kind is MarkKind.FALLBACKS
    assert (mark.affected, mark.total) == (14, 14)
    assert mark.detail == "14 of 14 layers rounded to nearest instead of GPTQ"


def test_layers_without_fallbacks_have_no_mark(checkpoint_of: Callable[[str], Path]) -> None:
    """GPTQ and AWQ count all their layers, and mark none."""
    for name, counted in (("gptq-w4a16-g64", {"gptq": 14}), ("awq-w4a16-g64", {"awq": 6})):
        facts = json.loads((checkpoint_of(name) / "hpcq.json").read_text(encoding="utf-8"))
        assert {method: found["of"] for method, found in facts["fallbacks"].items()} == counted
        assert derive_marks(VariantFacts(checkpoint=facts)) == ()


class AWQModifier:
    """A modifier of llmcompressor after its pass: of three groups of layers, one was not scaled."""

    __private_attributes__: ClassVar[dict[str, Any]] = {"_resolved_mappings": None, "_error_metrics": None}

    def __init__(self) -> None:
        groups = [f"model.layers.{number}.input_layernorm" for number in range(3)]
        self._resolved_mappings = [SimpleNamespace(smooth_name=name) for name in groups]
        self._error_metrics = [{"layer_name": name} for name in groups[:2]]


def test_groups_of_layers_that_awq_skips_are_counted() -> None:
    """llmcompressor skips a group whose activations are not finite. Observed: the table said AWQ."""
    counted = Fallbacks([AWQModifier()], layers=21, max_share=0.5)
    counted.check(AWQModifier(), is_complete=True)
    assert counted.facts["awq"] == {"layers": 1, "of": 3, "names": {"model.layers.*.input_layernorm": 1}}
    (mark,) = derive_marks(VariantFacts(checkpoint={"fallbacks": counted.facts}))
    assert (mark.kind, mark.affected, mark.total) == (MarkKind.FALLBACKS, 1, 3)
    with pytest.raises(
        UserInputError, match=r"^AWQ could not scale 1 of 3 groups of layers .*; at most 1% are accepted"
    ):
        Fallbacks([AWQModifier()], layers=21, max_share=0.01).check(AWQModifier(), is_complete=True)


def test_experts_without_tokens_are_marked() -> None:
    """Experts that the router never chose were calibrated with the tokens of others."""
    facts = VariantFacts(checkpoint={"experts": {"experts": 8, "experts_without_tokens": 3}})
    (mark,) = derive_marks(facts)
    assert mark.sentence == "experts without calibration tokens: 3 of 8 experts"


class GPTQModifier:
    """A later version that counts differently."""

    __private_attributes__: ClassVar[dict[str, Any]] = {}


def test_a_version_that_does_not_count_is_refused() -> None:
    """The private counters of llmcompressor are checked before the calibration."""
    with pytest.raises(SetupError, match=r"does not count the fallbacks of GPTQModifier \(no _num_compressed_modules"):
        Fallbacks([GPTQModifier()], layers=1, max_share=0.01)
