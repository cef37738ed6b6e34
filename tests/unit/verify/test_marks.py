"""Marks: what is derived from the facts of a variant, and how it is stored."""

from __future__ import annotations

import pytest

from hpcq.verify.marks import (
    Mark,
    MarkKind,
    TaskFacts,
    VariantFacts,
    checkpoint_count,
    derive_marks,
    marks_of_task,
    segment_text,
)


def test_counts_of_tasks_become_marks_of_these_tasks() -> None:
    """A task with cut prompts is marked with their number, and other tasks are not."""
    facts = VariantFacts(
        tasks={"a": TaskFacts(responses=40, cut_prompts=12, max_cut_tokens=7), "b": TaskFacts(responses=40)}
    )
    [mark] = derive_marks(facts)
    assert (mark.kind, mark.task, mark.affected, mark.total) == (MarkKind.PROMPTS_CUT, "a", 12, 40)
    assert mark.sentence == "prompts cut from the left: 12 of 40 prompts (30 %), by up to 7 tokens"
    assert marks_of_task([mark], "b") == ()


def test_a_variant_without_facts_has_no_marks() -> None:
    """Nothing is marked that no fact shows."""
    assert derive_marks(VariantFacts(tasks={"a": TaskFacts(responses=3)})) == ()


def test_facts_of_segments_and_checkpoints_are_found() -> None:
    """Texts of segments and counts of `hpcq.json` are found."""
    facts = VariantFacts(
        segments=[{"reason": ""}, {"reason": "no such kernel"}, {}],
        checkpoint={"coverage": {"fallbacks": 2, "layers": 14}},
    )
    assert [found.detail for found in segment_text("reason")(facts)] == ["no such kernel"]
    [found] = checkpoint_count(("coverage", "fallbacks"), ("coverage", "layers"), "layers")(facts)
    assert (found.detail, found.affected, found.total) == ("2 of 14 layers", 2, 14)
    assert not [*checkpoint_count(("coverage", "absent"), (), "layers")(facts)]


@pytest.mark.parametrize("kind", MarkKind)
def test_a_mark_is_stored_and_read_without_loss(kind: MarkKind) -> None:
    """The JSON form of a mark has everything that the mark has."""
    mark = Mark(kind=kind, detail="12 of 40", task="a", affected=12, total=40)
    if kind is not MarkKind.OTHER:
        assert Mark.from_json(mark.as_json()) == mark


def test_a_mark_of_another_version_keeps_its_sentence() -> None:
    """An unknown kind of mark is shown with the sentence of the version that made it."""
    document = Mark(kind=MarkKind.PROMPTS_CUT, detail="1 of 2").as_json() | {"kind": "new", "sentence": "new: 1 of 2"}
    mark = Mark.from_json(document)
    assert mark.kind is MarkKind.OTHER
    assert "new: 1 of 2" in mark.sentence


def test_symbols_and_labels_are_distinct() -> None:
    """No two kinds of marks look alike in a table."""
    assert len({kind.symbol for kind in MarkKind}) == len({kind.label for kind in MarkKind}) == len(MarkKind)
