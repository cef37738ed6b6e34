"""Items that changed: which, how many, and both responses."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hpcq.report.make_report import MergedRun
from hpcq.report.page import changed_items as module
from hpcq.report.page.changed_items import Answer, ChangedItem, ChangedItems, changed_items
from hpcq.report.page.content import PageContent
from hpcq.report.page.item_texts import MAX_ANSWER_BYTES, changed_list, excerpt
from hpcq.report.page.task_sections import tasks_section
from hpcq.store import open_results, read_responses


def test_counts_are_those_of_the_comparison(content: PageContent) -> None:
    """For right and wrong items, lower and higher are lost and gained; at most 20 of them are read."""
    checked = 0
    for row in content.main.values():
        changed = content.evidence.changed.get((row.run, row.variant, row.task))
        if row.paired and row.paired.lost is not None and changed:
            assert (changed.lower, changed.higher) == (row.paired.lost, row.paired.gained)
            assert len(changed.shown) == min(20, changed.lower + changed.higher)
            checked += 1
    assert checked > 20


def test_responses_are_those_of_the_results(content: PageContent, sample_run: MergedRun) -> None:
    """Texts and log-likelihoods of an item are what results.h5 has for its document, on both sides."""
    checked = set()
    for (_, variant, task), changed in content.evidence.changed.items():
        if "smoothquant" not in variant:
            continue
        responses = read_responses(sample_run.results, variant)
        for item in changed.shown:
            stored = sorted(
                (key, one) for key, one in responses.items() if (key.task, key.doc_id) == (item.task, item.doc_id)
            )
            assert item.own
            if item.own.text is not None:
                assert item.own.text == stored[0][1].text
            else:
                assert list(item.own.loglikelihoods) == [one.loglikelihood for _, one in stored]
            assert item.digest == stored[0][0].digest
            assert item.baseline_value != item.value
            assert item.own != item.baseline or task == "gsm8k"
            checked.add(task)
    assert checked == set(content.tasks)


def test_items_of_a_page_are_limited(
    content: PageContent, sample_run: MergedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many rows, each has few items, both lost and gained ones."""
    monkeypatch.setattr(module, "MAX_ITEMS", 70)
    with open_results(sample_run.results) as file:
        found = changed_items(content.rows, {"study": file})
    assert {len(one.shown) for one in found.values()} <= {0, 1, 2}
    both = next(one for one in found.values() if one.lower and one.higher)
    assert {np.sign(item.value - item.baseline_value) for item in both.shown} == {-1, 1}


def item(text: str) -> ChangedItem:
    """Return an item with the same text on both sides."""
    answer = Answer(text=text, length=len(text))
    return ChangedItem(
        task="t", doc_id=7, digest="ab" * 16, baseline_value=1.0, value=0.25, target=None, baseline=answer, own=None
    )


def test_an_item_has_its_number_and_its_change() -> None:
    """Scores that are not just right or wrong are numbers; a response that is not stored is said to be so."""
    source = changed_list(ChangedItems(lower=1, higher=0, shown=[item("yes")]), pairs=1).source
    assert "<bdi>t 7</bdi>: right → 0.25" in source
    assert "request abababababab" in source
    assert '<pre dir="auto">yes</pre>' in source
    assert "not stored" in source


@pytest.mark.parametrize(
    "text", ["a" * 1_000_000, "<" * 100_000, "\x1b" * 100_000, "日" * 100_000, "\U000e0041" * 9999]
)
def test_excerpts_have_a_size(text: str) -> None:
    """The source of a text has a limited size for any characters, and says how much is left out."""
    found = excerpt(text, MAX_ANSWER_BYTES)
    source = changed_list(ChangedItems(lower=1, higher=0, shown=[item(text)]), pairs=1).source
    assert len(source.encode()) < 2 * MAX_ANSWER_BYTES
    assert "characters …]" in found


def test_lists_share_the_size_of_the_page() -> None:
    """With many lists, each shows fewer items, possibly none, and how many there are."""
    many = ChangedItems(lower=20, higher=0, shown=[item("x" * 900)] * 20)
    assert changed_list(many, pairs=1).source.count("<li>") == 20
    few = changed_list(many, pairs=500).source
    assert 1 <= few.count("<li>") < 5
    assert re.search(r"\d of 20 items\.", few)
    assert "0 of 20 items." in changed_list(many, pairs=10**9).source


def test_tasks_have_subjects_and_notes(content: PageContent) -> None:
    """A group has a table of its subjects, a task the notes of the plan that begin with its name."""
    section = tasks_section(content)
    assert section
    source = section.content.source
    assert "6 subjects" in source
    assert all(f'<th scope="row">{name}</th>' in source for name in content.evidence.groups["mmlu"])
    assert "gsm8k: 1219 of the 1319 test items" in source
