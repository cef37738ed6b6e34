"""Tables of plain text at any width of the terminal."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from hpcq.report.text_tables import aligned_columns, ruled_table

LONG = "Llama-3.1-8B-Instruct smoothquant-w8a8"
REASON = "exited with code 1: CUDA out of memory. See logs/run/evaluate.llama--gptq-w4a16-g64--0123456789.1.log"
LINES = [("unit", "state", "reason"), ("  evaluate.a", "failed", REASON), ("  evaluate.b", "done", "")]


def test_a_long_first_column_is_folded_and_the_others_are_not() -> None:
    """On 40 columns, all characters of the long name are in its column, and each score is in one line."""
    lines = ruled_table(
        ["variant", "arc_challenge\nn=40"], [("bf16", "30.0 ±7.3"), (LONG, "30.0 ±7.3 (0.0)")], width=40
    )
    assert max(map(cell_len, lines)) <= 40
    first = len(lines[0]) - len("arc_challenge") - 4
    assert "".join("".join(line[:first] for line in lines[4:]).split()) == LONG.replace(" ", "")
    assert sum("30.0 ±7.3 (0.0)" in line for line in lines) == 1


def test_a_table_without_width_is_not_folded() -> None:
    """In a pipe, each line of cells is one line of text without trailing blanks."""
    assert aligned_columns(LINES) == [
        "unit          state   reason",
        f"  evaluate.a  failed  {REASON}",
        "  evaluate.b  done",
    ]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_last_column_is_folded_on_a_narrow_terminal(width: int) -> None:
    """The reason keeps all its characters below its heading, and the other columns are those of the wide table."""
    lines = aligned_columns(LINES, width=width)
    assert max(map(cell_len, lines)) <= width
    start = lines[0].index("reason")
    assert "".join("".join(line[start:] for line in lines[1:]).split()) == REASON.replace(" ", "")
    assert [line[:start].split() for line in lines if line[:start].strip()] == [
        ["unit", "state"],
        ["evaluate.a", "failed"],
        ["evaluate.b", "done"],
    ]


def test_a_terminal_too_narrow_for_the_other_columns_cuts_nothing() -> None:
    """On 10 columns the lines are longer than the terminal, but complete."""
    text = "".join("".join(aligned_columns(LINES, width=10)).split())
    assert all(word in text for word in ("evaluate.a", "failed", "evaluate.b", "done"))


def test_wide_characters_are_aligned_by_the_columns_that_they_take() -> None:
    """A CJK character takes two columns, a combining accent none."""
    lines = aligned_columns([("日本", "x"), ("e\u0301", "y"), ("abcd", "z")])
    assert [cell_len(line) for line in lines] == [7, 7, 7]


def test_a_table_without_lines_is_empty() -> None:
    """No line for no cells."""
    assert aligned_columns([]) == []
