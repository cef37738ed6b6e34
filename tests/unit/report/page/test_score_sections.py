"""Answer and scores: every sentence, every score, every mark."""

from __future__ import annotations

import dataclasses
import html
import re

import pytest

from hpcq.report.answer import answer_sentences
from hpcq.report.page import score_sections
from hpcq.report.page.answer_section import answer_section
from hpcq.report.page.content import PageContent
from hpcq.report.page.score_sections import all_scores_section, table_section
from hpcq.report.paired import Verdict
from hpcq.report.table import format_signed
from hpcq.verify.marks import Mark, MarkKind


def test_the_answer_has_each_sentence_and_what_is_missing(content: PageContent) -> None:
    """The sentences are those of the text format; counts of verdicts and missing scores are added."""
    source = html.unescape(answer_section(content).content.source)
    text = source.replace("<strong>", "").replace("</strong>", "")
    assert all(f"<li>{sentence}</li>" in text for sentence in content.answers)
    assert "6 variants compared with the unquantized model on the same items of 6 tasks: 35 comparisons, " in text
    assert "awq-w4a16-g128 has no score for gsm8k: NaN or infinite log-likelihoods: 7 of 600 responses" in text
    assert "CUDA out of memory." in text


def test_without_comparison_the_answer_says_so(small: PageContent) -> None:
    """Results of an earlier version have no items, thus no answer."""
    rows = [dataclasses.replace(row, paired=None) for row in small.rows]
    assert "No variant was compared" in answer_section(dataclasses.replace(small, rows=rows)).content.source


def test_a_range_of_equal_limits_is_one_number(content: PageContent) -> None:
    """Two tasks whose detectable differences round to the same number have that number, not a range of it."""
    rows = [row for row in content.rows if row.is_main and row.paired is not None][:2]
    compared = [
        dataclasses.replace(
            row,
            paired=dataclasses.replace(row.paired, detectable=size, verdict=Verdict.CANNOT_TELL),  # type: ignore[type-var]
            marks=(),
        )
        for row, size in zip(rows, (0.0121, 0.0123), strict=True)
    ]
    [sentence] = answer_sentences(compared, [], content.names)
    assert sentence.endswith("cannot tell on 2 of 2 tasks (smallest detectable difference: 1.2 points).")
    marks = (Mark(kind=MarkKind.ROUNDING, detail=""), Mark(kind=MarkKind.PROMPTS_CUT, detail=""))
    [sentence] = answer_sentences([dataclasses.replace(one, marks=marks) for one in compared], [], content.names)
    assert sentence.endswith("1.2 points); see the marks ^C, ^D.")


def test_numbers_break_before_what_is_in_parentheses(content: PageContent) -> None:
    """On a narrow screen a score is above its difference, and neither is broken."""
    row = next(one for one in content.rows if one.delta is not None)
    cell = f"<span>{format_signed(100 * (row.delta or 0))}</span> <span>("
    section = all_scores_section(content)
    assert section
    assert cell in section.content.source
    assert f"</span> <span>({format_signed(100 * (row.delta or 0))} " in table_section(content).content.source


def test_all_scores_are_in_the_table(content: PageContent) -> None:
    """Each score has a line with its difference, also of subjects and other metrics, and marks are in words."""
    section = all_scores_section(content)
    assert section
    source = section.content.source
    assert source.count("<tr") - 2 == len(content.rows)
    for row in content.rows:
        assert f"{100 * row.value:.1f}" in source if row.value is not None else True
        assert format_signed(100 * row.delta) in source if row.delta is not None else True
        assert all(html.escape(mark.sentence) in source for mark in row.marks)


def test_many_scores_are_limited(content: PageContent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Main scores come first, and the page says where the others are."""
    monkeypatch.setattr(score_sections, "MAX_ROWS", 54)
    section = all_scores_section(content)
    assert section
    assert f"54 of {len(content.rows)} scores" in section.content.source
    assert section.content.source.count('<tr id="s') == 54


def test_the_pivoted_table_has_its_notes(content: PageContent) -> None:
    """Cells and notes are those of the text format."""
    source = html.unescape(re.sub("</?span>", "", table_section(content).content.source))
    assert all(cell in source for line in content.table.lines for cell in line)
    assert all(note in source for note in content.table.notes)
