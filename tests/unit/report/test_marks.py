"""Marks in reports: every output format shows them, and a withheld score has no number anywhere."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from hpcq.report.formats import FORMATTERS, Report
from hpcq.report.rows import make_rows
from hpcq.report.table import make_table
from hpcq.store import Results, Score, VariantScores
from hpcq.verify.marks import Mark, MarkKind

CUT = Mark(kind=MarkKind.PROMPTS_CUT, detail="12 of 40 prompts, by up to 7 tokens", task="gsm8k", affected=12, total=40)
NOT_FINITE = Mark(kind=MarkKind.NOT_FINITE, detail="40 of 40 responses", task="truthfulqa_mc1", affected=40, total=40)
FALLBACKS = Mark(kind=MarkKind.FALLBACKS, detail="2 of 14 layers", affected=2, total=14)


def variant(scheme: str, *marks: Mark, scores: dict[str, float], model: str = "org/Model") -> VariantScores:
    """Return a variant with one score per task."""
    metrics = {"gsm8k": ("exact_match", "strict-match"), "truthfulqa_mc1": ("acc", "none")}
    return VariantScores(
        variant=f"model--{scheme}--1",
        provenance={"model": model, "scheme": scheme, "tool": "none", "backend": "vllm", "evaluate_seconds": 1.0},
        scores=tuple(
            Score(task=task, metric=metrics[task][0], filter=metrics[task][1], value=value, stderr=0.1, n=40)
            for task, value in scores.items()
        ),
        rows={},
        marks=tuple(mark.as_json() for mark in marks),
    )


def report(*variants: VariantScores, notes: tuple[str, ...] = ()) -> Report:
    """Return the report of one run."""
    rows = make_rows(Results(run="r", inputs="", provenance={}, merge={}, variants=variants))
    return Report(runs="r", rows=rows, table=make_table(rows, title="T", notes=notes))


MARKED = report(
    variant("bf16", CUT, scores={"gsm8k": 0.5, "truthfulqa_mc1": 0.25}),
    variant("w4", CUT, NOT_FINITE, FALLBACKS, scores={"gsm8k": 0.45}),
)


@pytest.mark.parametrize("name", [name for name in FORMATTERS if name != "csv"])
def test_every_format_has_every_mark(name: str) -> None:
    """Each format has the findings of each variant."""
    text = " ".join(FORMATTERS[name](MARKED).split())
    assert text.count(CUT.detail) >= 2
    assert NOT_FINITE.detail in text
    assert FALLBACKS.detail in text


def test_cells_have_the_symbols_of_their_marks() -> None:
    """A mark of a task is at its score, a mark of all tasks at the variant; a withheld score is a dash."""
    assert MARKED.table.lines[0][:3] == ("bf16", "50.0 ±10.0 ^C", "25.0 ±10.0")
    assert MARKED.table.lines[1][:3] == ("w4 ^F", "45.0 ±10.0 (−5.0) ^C", "– ^N")
    assert MARKED.table.notes == (
        "^N NaN or infinite log-likelihoods: w4: truthfulqa_mc1 40 of 40 responses.",
        (
            "^C prompts cut from the left: bf16: gsm8k 12 of 40 prompts, by up to 7 tokens;"
            " w4: gsm8k 12 of 40 prompts, by up to 7 tokens."
        ),
        "^F layers not quantized by the scheme's method: w4: 2 of 14 layers.",
    )


def test_json_rows_have_marks_and_a_withheld_score_is_null() -> None:
    """Programs get the kind, the task and the counts of each mark."""
    rows = {(row["scheme"], row["task"]): row for row in json.loads(FORMATTERS["json"](MARKED))["rows"]}
    assert rows["bf16", "truthfulqa_mc1"]["marks"] == []
    assert [mark["kind"] for mark in rows["w4", "gsm8k"]["marks"]] == ["prompts_cut", "fallbacks"]
    withheld = rows["w4", "truthfulqa_mc1"]
    assert (withheld["value"], withheld["delta"], withheld["metric"], withheld["is_main"]) == (None, None, "acc", True)
    assert [(mark["kind"], mark["affected"], mark["total"]) for mark in withheld["marks"]] == [
        ("not_finite", 40, 40),
        ("fallbacks", 2, 14),
    ]


def test_csv_rows_have_their_marks_in_words() -> None:
    """The CSV has the sentences of the marks in one column, and no number for a withheld score."""
    lines = {(line["scheme"], line["task"]): line for line in csv.DictReader(io.StringIO(FORMATTERS["csv"](MARKED)))}
    assert lines["w4", "gsm8k"]["marks"] == f"{CUT.sentence}; {FALLBACKS.sentence}"
    assert lines["w4", "truthfulqa_mc1"]["value"] == ""


def test_a_variant_without_any_score_keeps_its_line() -> None:
    """If all scores of a variant are withheld, the table still has its line, with the reason."""
    only = report(variant("bf16", scores={"truthfulqa_mc1": 0.25}), variant("w4", NOT_FINITE, scores={}))
    assert [line[:2] for line in only.table.lines] == [("bf16", "25.0 ±10.0"), ("w4", "– ^N")]


def test_members_of_a_group_are_named_only_without_their_group() -> None:
    """A note names the tasks of the table, not the 57 members of a group that is one of them."""
    marks = [
        Mark(kind=MarkKind.PROMPTS_CUT, detail=f"{number} of 9 prompts", task=name)
        for number, name in enumerate(("gsm8k", "gsm8k_member"), start=1)
    ]
    [note] = report(variant("bf16", *marks, scores={"gsm8k": 0.5})).table.notes
    assert note == "^C prompts cut from the left: bf16: gsm8k 1 of 9 prompts."


def hostile(name: str) -> Any:
    """Return a report of a model, a scheme and a note with `name` in them."""
    mark = Mark(kind=MarkKind.OTHER, detail=f"mark {name}")
    models = [
        variant(name, mark, scores={"gsm8k": 0.5}, model=f"org/{name}"),
        variant("b", scores={"gsm8k": 0.1}, model="x/y"),
    ]
    return report(*models, notes=(f"note {name}",))


@pytest.mark.parametrize(
    "name", ["a|b", "a\nb", "a\r\n| x | y |", "a_b_c", "*a*", "`a`", "<b>a</b>", "\x1b[31ma", "%&#$"]
)
def test_names_cannot_change_the_layout(name: str) -> None:
    """Pipes, line breaks, markup and control characters of a name stay text, in cells and notes."""
    found = hostile(name)
    markdown = FORMATTERS["md"](found).splitlines()
    table = [line for line in markdown if line.startswith("|")]
    assert len(table) == 4
    assert len({len(line.replace("\\|", "").split("|")) for line in table}) == 1
    assert sum(line.startswith("- ") for line in markdown) == len(found.table.notes) == 2
    for text in (FORMATTERS["text"](found), "\n".join(markdown), FORMATTERS["latex"](found), FORMATTERS["html"](found)):
        assert all(character.isprintable() or character == "\n" for character in text)
    assert "<b>" not in FORMATTERS["html"](found)
    schemes = [row["scheme"] for row in csv.DictReader(io.StringIO(FORMATTERS["csv"](found), newline=""))]
    assert schemes.count(name.replace("\x1b", "\N{SYMBOL FOR ESCAPE}")) == 1
    assert "\\textsuperscript{?}" in FORMATTERS["latex"](found)
