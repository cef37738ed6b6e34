"""Ids of units: one grammar, and names that select whole components of ids and nothing by chance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcq.core.addressing import slug
from hpcq.core.errors import UserInputError
from hpcq.core.unit_ids import UnitId, select_units
from hpcq.core.work_records import Model, Scheme, Shard, UnitKind, Variant

LLAMA = "llama-2-7b--bf16--0123456789ab"
QUANTIZED = "llama-2-7b--gptq-w4a16-g64--fe7b00aa11cd"
OTHER = "qwen3-0.6b--gptq-w4a16-g64--ab7bdecade00"
KNOWN = [
    f"quantize.{QUANTIZED}",
    f"quantize.{OTHER}",
    f"evaluate.{LLAMA}",
    *(f"evaluate.{QUANTIZED}.{index}of2" for index in range(2)),
    *(f"evaluate.{OTHER}.{index}of2" for index in range(2)),
    "merge.my-study.1of2",
]


@pytest.mark.parametrize("text", KNOWN)
def test_an_id_is_taken_apart_and_put_together(text: str) -> None:
    """The text of the parts is the id."""
    assert str(UnitId.parse(text)) == text


@given(st.sampled_from(UnitKind), st.text(min_size=1).map(slug), st.text(min_size=1).map(slug), st.integers(1, 12))
def test_every_id_that_is_built_is_parsed(kind: UnitKind, model: str, scheme: str, count: int) -> None:
    """The id of a variant with any names of model and scheme; only evaluations have shards."""
    work = Scheme(name=scheme, tool="none", method="none", weights="bf16", activations="bf16")
    shard = Shard(index=count - 1, count=count) if kind is UnitKind.EVALUATE else Shard()
    unit = UnitId(kind=kind, subject=Variant(model=Model(id=model), scheme=work).id, shard=shard)
    assert UnitId.parse(str(unit)) == unit


def test_the_parts_of_an_id() -> None:
    """Kind, variant and shard; the run of a merge may look like a shard."""
    assert UnitId.parse(f"evaluate.{OTHER}.1of2") == UnitId(
        kind=UnitKind.EVALUATE, subject=OTHER, shard=Shard(index=1, count=2)
    )
    assert UnitId.parse("merge.my-study.1of2") == UnitId(kind=UnitKind.MERGE, subject="my-study.1of2")


@pytest.mark.parametrize("text", ["", "evaluate", "evaluate.", "answered.v.of2.abc", "one", ".evaluate.v"])
def test_other_names_are_no_ids(text: str) -> None:
    """Other entries of a run's folders are not mistaken for units."""
    assert UnitId.parse(text) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"evaluate.{OTHER}.1of2", [f"evaluate.{OTHER}.1of2"]),
        ("merge.my-study.1of2", ["merge.my-study.1of2"]),
        (f"evaluate.{OTHER}", [f"evaluate.{OTHER}.0of2", f"evaluate.{OTHER}.1of2"]),
        (OTHER, [unit_id for unit_id in KNOWN if OTHER in unit_id]),
        ("llama-2-7b", [unit_id for unit_id in KNOWN if "llama" in unit_id]),
        ("Llama-2-7B", [unit_id for unit_id in KNOWN if "llama" in unit_id]),
        ("gptq-w4a16-g64", [unit_id for unit_id in KNOWN if "gptq" in unit_id]),
        ("bf16", [f"evaluate.{LLAMA}"]),
        ("evaluate", [unit_id for unit_id in KNOWN if unit_id.startswith("evaluate")]),
        ("merge", ["merge.my-study.1of2"]),
        ("1of2", [f"evaluate.{QUANTIZED}.1of2", f"evaluate.{OTHER}.1of2"]),
        ("ab7bde", [unit_id for unit_id in KNOWN if OTHER in unit_id]),
        ("0123456789ab", [f"evaluate.{LLAMA}"]),
        ("*7b-*w4a16*of2", [f"evaluate.{QUANTIZED}.0of2", f"evaluate.{QUANTIZED}.1of2"]),
        ("evaluate.llama*", [unit_id for unit_id in KNOWN if unit_id.startswith("evaluate.llama")]),
        ("evaluate.*.[0]of2", [f"evaluate.{QUANTIZED}.0of2", f"evaluate.{OTHER}.0of2"]),
    ],
)
def test_a_name_selects_an_id_a_whole_component_or_a_pattern(name: str, expected: list[str]) -> None:
    """In any case of letters, and in the order of the plan; an exact id selects only itself."""
    assert select_units(KNOWN, [name]) == {name: tuple(expected)}


@pytest.mark.parametrize("name", ["7b", "2-7b", "gptq", "ab7bd", "7bdecade", "of2", "eval", "llama", "g64--ab7b", ""])
def test_a_part_of_a_component_selects_nothing(name: str) -> None:
    """'7b' is in a model's name and in digests of other models: no unit is selected by chance."""
    with pytest.raises(UserInputError, match="no unit of this run has this id, kind, model"):
        select_units(KNOWN, ["evaluate", name])


def test_a_refused_name_is_answered_with_the_nearest_ids() -> None:
    """Ids that contain the name come first, then those with the most similar component."""
    with pytest.raises(UserInputError, match=rf"^decade: .* Nearest: quantize\.{OTHER}, "):
        select_units(KNOWN, ["decade"])
    with pytest.raises(UserInputError, match=rf"Nearest: quantize\.{QUANTIZED}, "):
        select_units(KNOWN, ["gptq-w4a16-g46"])


def test_a_kind_that_is_also_a_model_is_refused() -> None:
    """'merge' selects nothing if a model has that name: the user chooses by a pattern."""
    known = ["evaluate.merge--bf16--0123456789ab", "merge.study"]
    with pytest.raises(UserInputError, match=r"^merge: this is a kind of unit, and a .*'\*\.merge--\*' for the mo"):
        select_units(known, ["merge"])
    assert select_units(known, ["*.merge--*", "merge.*"]) == {"*.merge--*": (known[0],), "merge.*": (known[1],)}


def test_a_scheme_with_its_tool_selects_its_units() -> None:
    """The name in the manifest has a colon, and the id a hyphen."""
    known = ["quantize.tiny--autogptq-gptq-w4a16--0123456789ab", "quantize.tiny--gptq-w4a16--0123456789ab"]
    assert select_units(known, ["autogptq:gptq-w4a16"]) == {"autogptq:gptq-w4a16": (known[0],)}
