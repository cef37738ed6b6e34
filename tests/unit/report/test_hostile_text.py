"""Hostile text in ids, names and notes: it shows itself and does nothing, in every format."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import io
import json
import re
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hpcq.report.answer import answer_sentences
from hpcq.report.clean_text import RIGHT_TO_LEFT_RUN, valid_unicode
from hpcq.report.comparison_table import comparison_table
from hpcq.report.fidelity import ChoiceFidelity, Estimate
from hpcq.report.fidelity_table import fidelity_table
from hpcq.report.formats import FORMATTERS, Report
from hpcq.report.gate import GatePolicy, evaluate_gate
from hpcq.report.gate_table import gate_table
from hpcq.report.paired import PairedResult, Verdict
from hpcq.report.rows import make_rows
from hpcq.report.table import line_names, make_table
from hpcq.store import Results, Score, VariantScores
from hpcq.verify.marks import Mark, MarkKind
from tests.unit.report.test_formats import latex_tabulars, read_latex

FRAGMENTS = (
    "<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "</style></title>", "<!--", "]]>", "&lt;",
    "\x1b[31m", "\x1b]0;title\x07", "\x9b2J", "\r", "\n", "\n\n", "\x00", "\x7f", "\t",
    "=1+1", '=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", "'", '"', ",", ";", "|", "\\|",
    "\\input{x}", "\\end{tabular}", "$x$", "%", "&", "\\\\", "^^5c", "{", "}", "_", "#", "~", "--", "``", "[", "*",
    "\u202eabc", "\u2066", "\u200f", "\u061c", "שלום", "日本", "e\u0301", "\u2028", "\u2029", "\ufeff",
    "\ud800", "\udcff", "\ud83d\ude00", "[x](javascript:x)", "![x](y)", "`", "**", "1. ", "# ", "- ", "---", "> ",
    "http://x.org", ":smile:", "[bold]", "§†‡", "≤≥≈±×…’–—−",
)  # fmt: skip
HOSTILE = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), min_size=1, max_size=6).map("".join)
PAIRED = PairedResult(
    delta_low=-0.05, delta_high=0.01, delta_stderr=0.015, equivalence_low=-0.04, equivalence_high=0.005, p_value=0.2,
    adjusted_p_value=0.3, method="McNemar, exact", gained=1, lost=3, recovery=0.9, recovery_low=0.8, recovery_high=1.0,
    detectable=0.04, margin=0.01, verdict=Verdict.CANNOT_TELL,
)  # fmt: skip


def report_of(name: str) -> Report:
    """Return a report with `name` in the names of run, model, scheme, backend and task, in a mark and in a note."""
    mark = Mark(kind=MarkKind.OTHER, detail=f"{name}x mark {name}")
    variants = [
        VariantScores(
            variant=f"{name}v{at}",
            provenance={
                "model": f"{name}m", "scheme": f"{name}s{at}", "tool": tool, "backend": f"{name}b",
                "evaluate_seconds": 5.0, "gpu_class": f"{name}g", "dtype": name,
            },
            scores=(Score(task="gsm8k", metric="exact_match", filter="flexible-extract", value=0.5, stderr=0.1, n=9),
                    Score(task=f"{name}t", metric=f"{name}acc", filter=name, value=0.5, stderr=0.1, n=9)),
            rows={},
            marks=(mark.as_json(),),
        )
        for at, tool in enumerate(("none", f"{name}t"))
    ]  # fmt: skip
    rows = make_rows(Results(run=f"{name}r", inputs="", provenance={}, merge={}, variants=tuple(variants)))
    rows = [dataclasses.replace(row, is_main=True, paired=PAIRED if row.delta is not None else None) for row in rows]
    names = line_names(rows)
    gate = evaluate_gate(rows, names, GatePolicy(name=f"{name}p", margin_points=1.0))
    one = Estimate(value=0.1, low=0.0, high=0.2)
    fidelity = [
        ChoiceFidelity(
            run=row.run, variant=row.variant, task=row.task, n=9, divergence=one, agreement=one, gold_change=one,
            margin_change=one,
        )
        for row in rows
        if row.paired
    ]  # fmt: skip
    return Report(
        runs=f"{name}r",
        rows=rows,
        table=make_table(rows, title=f"{name}title", notes=[f"{name}note"]),
        answers=tuple(answer_sentences(rows, (), names)),
        differences=comparison_table(rows, (), names),
        fidelity=fidelity,
        closeness=fidelity_table(fidelity, names),
        gate=gate,
        checks=gate_table(gate),
    )


class _Structure(html.parser.HTMLParser):
    """Collects the elements of a page and the names of their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Add an element."""
        if tag != "bdi":
            self.found.append((tag, *(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Add its end."""
        if tag != "bdi":
            self.found.append((f"/{tag}",))

    def handle_comment(self, data: str) -> None:
        """Fail: pages have no comments."""
        raise AssertionError(data)


def elements(page: str) -> list[tuple[str, ...]]:
    """Return the elements of a page."""
    parser = _Structure()
    parser.feed(page)
    parser.close()
    return parser.found


def blocks(document: str) -> list[str]:
    """Return the types of all blocks of Markdown, and those of inline markup."""
    tokens = MarkdownIt("gfm-like", {"linkify": False, "html": True}).parse(document)
    inline = {child.type for token in tokens for child in token.children or []}
    return [*(token.type for token in tokens), *sorted(inline - {"text", "text_special"})]


BENIGN = report_of("a")
SAME = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def each_fragment(function: Any) -> Any:
    """Add every fragment as an example, in one text and alone at the beginning."""
    for fragment in FRAGMENTS:
        function = example(name=fragment)(function)
    return example(name="x".join(FRAGMENTS))(function)


@SAME
@each_fragment
@given(name=HOSTILE)
def test_every_format_keeps_its_structure(name: str) -> None:
    """The same elements, blocks, lines and cells as with a benign name; no character acts on a terminal."""
    report = report_of(name)
    texts = {form: write(report) for form, write in FORMATTERS.items()}
    for form, text in texts.items():
        text.encode("utf-8")
        permitted = "\r\n\t" if form == "csv" else "\n"
        shown = without_isolates(text)
        assert not [one for one in shown if not one.isprintable() and one not in permitted and form != "csv"], form
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]", shown)
    assert elements(texts["html"]) == elements(FORMATTERS["html"](BENIGN))
    assert blocks(texts["md"]) == blocks(FORMATTERS["md"](BENIGN))
    check_csv(texts["csv"], report)
    check_latex(texts["latex"])
    read = json.loads(texts["json"])
    assert [row["scheme"] for row in read["rows"]] == [valid_unicode(row.scheme) for row in report.rows]


def without_isolates(text: str) -> str:
    """Return `text` without the isolates of words from right to left, each of which has a beginning and an end."""
    return re.sub(f"\u2068({RIGHT_TO_LEFT_RUN.pattern})\u2069", r"\g<1>", text)


HEBREW = "\N{HEBREW LETTER SHIN}\N{HEBREW LETTER LAMED}"


def test_words_from_right_to_left_do_not_reorder_what_is_next_to_them() -> None:
    """A name of Hebrew letters is isolated in text, Markdown and HTML; an override is shown by its code, everywhere."""
    report = report_of(f"{HEBREW} \u202eevil")
    texts = {form: write(report) for form, write in FORMATTERS.items()}
    for form in ("text", "md", "html"):
        start, end = ("<bdi>", "</bdi>") if form == "html" else ("\u2068", "\u2069")
        assert f"{start}{HEBREW}{end}" in texts[form]
        plain = texts[form].replace(f"{start}{HEBREW}{end}", "").replace(f"\u2068{HEBREW}\u2069", "")
        assert HEBREW not in plain, form
    assert all(r"\u202eevil" in texts[form] for form in ("text", "md", "html", "csv"))
    assert "\\textbackslash{}u202eevil" in texts["latex"]
    assert json.loads(texts["json"])["rows"][0]["scheme"] == f"{HEBREW} \u202eevils0"
    assert "\u202e" not in "".join(texts.values())


def check_csv(text: str, report: Report) -> None:
    """Check that no text is a formula, and that all rows and numbers are there."""
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [float(row["value"]) for row in rows] == [row.value for row in report.rows]
    assert [float(row["delta"]) for row in rows if row["delta"]] == [
        row.delta for row in report.rows if row.delta is not None
    ]
    for row in rows:
        for cell in row.values():
            if cell and cell.lstrip()[:1] in tuple("=+-@"):
                float(cell)


def check_latex(text: str) -> None:
    """Check that no special character of a cell, a caption or a note is unescaped."""
    for part in text.split(r"\begin{table}")[1:]:
        assert all(len({len(cells) for cells in rows}) == 1 for rows in latex_tabulars(part))
        for sentence in re.findall(r"\\caption\{(.*)\}$|\\raggedright (.*)\}$", part, re.MULTILINE):
            read_latex("".join(sentence))


def test_a_megabyte_of_text_is_cut_in_tables() -> None:
    """Tables show the beginning and the number of characters; CSV and JSON have all of it."""
    name = "<b>" * 350_000
    report = report_of(name)
    for form, write in FORMATTERS.items():
        text = write(report)
        if form in ("csv", "json"):
            assert name in text
        else:
            assert len(text) < 600_000
            assert f"({len(name) + 2} characters)" in " ".join(text.split()), form
