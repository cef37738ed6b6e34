"""Rows, table and output formats of a report."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import io
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.cells import cell_len

from hpcq.core.errors import UserInputError
from hpcq.report.formats import FORMATTERS, Report
from hpcq.report.number_formats import format_count, format_duration, format_token_savings
from hpcq.report.published import add_published_scores, find_studies
from hpcq.report.rows import Row, make_rows
from hpcq.report.table import (
    COST_COLUMNS,
    Column,
    Table,
    format_signed,
    make_table,
)
from hpcq.store import Results, Score, VariantScores


def variant(name: str, tool: str, value: float, **provenance: Any) -> VariantScores:
    """Return the scores of a variant for one task in two metrics."""
    facts = {"model": "org/Some-Model", "scheme": name, "tool": tool, "backend": "accelerate", "evaluate_seconds": 75.0}
    scores = (
        Score(task="arc_challenge", metric="acc_norm", filter="none", value=value, stderr=0.05, n=40),
        Score(task="arc_challenge", metric="acc", filter="none", value=value + 0.1, stderr=0.05, n=40),
    )
    return VariantScores(variant=f"some-model--{name}--1", provenance={**facts, **provenance}, scores=scores, rows={})


RESULTS = Results(
    run="demo",
    inputs="",
    provenance={},
    merge={"missing": 0, "conflicts": 0},
    variants=(
        variant("a_4|bit", "llmcompressor", 0.25, checkpoint_bytes=90_000_000, quantize_seconds=3605.0),
        variant(
            "bf16",
            "none",
            0.3,
            checkpoint_bytes=269_000_000,
            asked_tokens=1_200_000,
            computed_tokens=310_000,
            prefix_sharing="exact",
        ),
    ),
)
ROWS = make_rows(RESULTS, variant_order=["some-model--bf16--1", "some-model--a_4|bit--1"])
REPORT = Report(
    runs="demo", rows=ROWS, table=make_table(ROWS, title="Demo <1>", notes=["Mind & think: 5 % $ { } ~ ^ \\"])
)


def test_each_row_has_the_score_of_its_unquantized_model() -> None:
    """A quantized row has baseline and difference, the baseline row has none, and the order is that of the plan."""
    assert [(row.scheme, row.metric, row.baseline_value) for row in ROWS] == [
        ("bf16", "acc", None),
        ("bf16", "acc_norm", None),
        ("a_4|bit", "acc", 0.4),
        ("a_4|bit", "acc_norm", 0.3),
    ]
    assert [row.delta for row in ROWS[2:]] == pytest.approx([-0.05, -0.05])
    assert [row.is_main for row in ROWS] == [False, True, False, True]


def test_a_model_without_unquantized_variant_has_no_differences() -> None:
    """Without a baseline there is no difference: scores of other models are not used."""
    rows = make_rows(Results(run="r", inputs="", provenance={}, merge={}, variants=RESULTS.variants[:1]))
    assert {row.delta for row in rows} == {None}


def test_checkpoints_with_one_scheme_name_are_named_apart() -> None:
    """Two checkpoints of one publisher and format have the names of their repositories, a single one only its own."""
    scheme = "fp8 (org)"
    facts = {"scheme": scheme, "checkpoint_revision": "c0ffee"}
    variants = [
        variant("fp8-a", "fp8", 0.2, checkpoint="org/A", **facts),
        variant("fp8-b", "fp8", 0.2, checkpoint="org/B", **facts),
    ]
    for count, names in ((1, {scheme}), (2, {"fp8 (org/A@c0ffee)", "fp8 (org/B@c0ffee)"})):
        rows = make_rows(Results(run="r", inputs="", provenance={}, merge={}, variants=tuple(variants[:count])))
        assert {row.scheme for row in rows} == names
        assert {row.checkpoint for row in rows} <= {"org/A@c0ffee", "org/B@c0ffee"}


def test_the_table_shows_score_error_difference_and_costs() -> None:
    """A cell is 'score ±error (difference)' in percent; the cost columns are GB, times and tokens."""
    costs = ("GB on disk", "quantize", "evaluate", "tokens computed")
    assert REPORT.table.headings == ("variant", "arc_challenge (n=40)", *costs)
    assert REPORT.table.lines == (
        ("bf16", "30.0 ±5.0", "0.269", "–", "1 min 15 s", "310 k of 1.2 M"),
        ("a_4|bit", "25.0 ±5.0 (−5.0)", "0.090", "1 h 00 min", "1 min 15 s", "–"),
    )


def test_csv_has_the_tokens_and_the_kind_of_prefix_sharing() -> None:
    """Each row has the counts of its variant, or empty cells if they are unknown."""
    read = list(csv.DictReader(io.StringIO(FORMATTERS["csv"](REPORT))))
    tokens = [(row["asked_tokens"], row["computed_tokens"], row["prefix_sharing"]) for row in read]
    assert tokens == [("1200000", "310000", "exact")] * 2 + [("", "", "")] * 2


def test_every_format_has_every_main_score() -> None:
    """Both variants and their scores are in every format."""
    for name, write in FORMATTERS.items():
        document = write(REPORT)
        assert "bf16" in document, name
        assert ("25.0" in document) or ("0.25" in document), name


def test_csv_and_json_have_all_rows_and_fields() -> None:
    """CSV and JSON have every metric, not the pivoted table."""
    read = list(csv.DictReader(io.StringIO(FORMATTERS["csv"](REPORT))))
    assert [float(row["value"]) for row in read] == [row.value for row in ROWS]
    document = json.loads(FORMATTERS["json"](REPORT))
    assert document["schema"] == 1
    assert document["rows"][3]["delta"] == ROWS[3].delta
    assert {"model", "scheme", "tool", "backend", "task", "metric", "value", "stderr", "n", "baseline_value"} <= set(
        document["rows"][0]
    )


def test_special_characters_are_escaped() -> None:
    """Bars, angle brackets, ampersands, percent signs and backslashes are escaped in each format."""
    assert r"a\_4|bit" in FORMATTERS["latex"](REPORT)
    assert r"5 \% \$ \{ \} \textasciitilde{} \^{} \textbackslash{}" in FORMATTERS["latex"](REPORT)
    assert r"| a_4\|bit " in FORMATTERS["md"](REPORT)
    page = FORMATTERS["html"](REPORT)
    assert "<h2>Demo &lt;1&gt;</h2>" in page
    html.parser.HTMLParser().feed(page)


def test_text_columns_are_aligned() -> None:
    """In the text table, cells are below their heading."""
    lines = FORMATTERS["text"](REPORT).splitlines()
    heading, detail, first = lines[2], lines[3], lines[5]
    assert heading.index("GB on disk") + len("GB on disk") == first.index("0.269") + len("0.269")
    assert heading.index("arc_challenge") + len("arc_challenge") == len(detail) == first.index("5.0") + len("5.0")
    assert detail.strip() == "n=40"


NASTY_NAMES = (
    "a_b", "_a_b_", "a|b", r"a\|b", "a\\", "100 %", "$x$", "#1", "{x}", "~x~", "~~x~~", "x^2", "*x*", "**x**", "`x`",
    "&amp;", "a & b", "<b>x</b>", "a < b", "<http://x.org>", "[x](y)", "[x]", "[1] x", "![x](y)", r"\textbf{x}", "--",
    "\N{MINUS SIGN}1.0", "60 \N{PLUS-MINUS SIGN}5 (+1\N{DAGGER}) [61]", '"x"', "日本", ":smile:", "[bold]x[/bold]",
)  # fmt: skip


def nasty_report(*, width: int | None = None) -> Report:
    """A report with names that are markup in one of the formats: in the heading, the first column and the others."""
    names = NASTY_NAMES
    columns = [Column(name="variant"), *(Column(name=name) for name in (names[1], names[2], *COST_COLUMNS))]
    lines = tuple((name, names[at - 1], *[name] * (len(columns) - 2)) for at, name in enumerate(names))
    return Report(runs="r", rows=(), table=Table(title="T", columns=tuple(columns), lines=lines), width=width)


def expected_cells() -> list[list[str]]:
    """Return the cells of `nasty_report`, heading first."""
    table = nasty_report().table
    return [list(table.headings), *map(list, table.lines)]


def text_of(token: Token) -> str:
    """Return the text that a reader of rendered Markdown sees; markup is shown by its type."""
    children = token.children or []
    return "".join(
        child.content if child.type in ("text", "text_special") else f"<<{child.type}>>" for child in children
    )


def test_a_markdown_parser_reads_the_same_cells() -> None:
    """A parser of GitHub-flavoured Markdown finds one table with these cells, for any characters in names."""
    tokens = MarkdownIt("gfm-like", {"linkify": False, "html": True}).parse(FORMATTERS["md"](nasty_report()))
    assert [token.type for token in tokens].count("table_open") == 1
    rows: list[list[str]] = []
    for token, content in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "tr_open":
            rows.append([])
        if token.type in ("th_open", "td_open") and content:
            rows[-1].append(text_of(content))
    assert rows == expected_cells()


_LATEX_TEXT = {
    r"\&": "&", r"\%": "%", r"\$": "$", r"\#": "#", r"\_": "_", r"\{": "{", r"\}": "}", r"\^{}": "^",
    r"\textasciitilde{}": "~", r"\textbackslash{}": "\\", r"\ensuremath{<}": "<", r"\ensuremath{>}": ">",
    r"$\pm$": "\N{PLUS-MINUS SIGN}", r"$-$": "\N{MINUS SIGN}", r"\dag{}": "\N{DAGGER}", "{[}": "[", "{*}": "*",
    "{}": "", "--": "\N{EN DASH}", "---": "\N{EM DASH}", r"\ldots{}": "…", "{'}": "\N{RIGHT SINGLE QUOTATION MARK}",
    r"$\approx$": "≈", r"$\downarrow$": "↓", r"$\uparrow$": "↑", r"$\rightarrow$": "→", r"$\times$": "×",
    "~": "\N{NO-BREAK SPACE}", r"\textsuperscript{?}": " ^?", r"\ddag{}": "\N{DOUBLE DAGGER}",
    r"\S{}": "\N{SECTION SIGN}", r"$\leq$": "≤", r"$\geq$": "≥",
}  # fmt: skip
_NO_FONT = r"\\hpcqchar\{(?P<shown>.)\}\{U\+[0-9A-F]{4,6}\}"
"""A character that pdfLaTeX's fonts do not have."""
_LATEX_TOKEN = re.compile(
    "|".join([_NO_FONT, *map(re.escape, sorted(_LATEX_TEXT, key=len, reverse=True)), r"[^&%$#_{}~^\\]"])
)


def read_latex(source: str) -> str:
    """Return the typeset text; fails on a special character that is not escaped."""
    text, at = "", 0
    while at < len(source):
        token = _LATEX_TOKEN.match(source, at)
        assert token, source[at:]
        text += token["shown"] or _LATEX_TEXT.get(token[0], token[0])
        at = token.end()
    return text


def latex_tabulars(document: str) -> list[list[list[str]]]:
    """Return the cells of each tabular, heading first."""
    found = []
    for part in re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", document, re.DOTALL):
        rows = [line.removesuffix(r"\\") for line in part.splitlines() if line.endswith(r"\\")]
        found.append([[read_latex(cell.strip()) for cell in re.split(r"(?<!\\)&", row)] for row in rows])
    return found


def latex_cells(document: str) -> list[list[str]]:
    """Return the cells of a table whose blocks of columns are joined again."""
    first, *others = latex_tabulars(document)
    return [sum((cells[1:] for cells in more), start=names) for names, *more in zip(first, *others, strict=True)]


def test_latex_cells_are_read_back() -> None:
    """If each escape is undone, the cells are the same, and no line begins with what the line break would read."""
    document = FORMATTERS["latex"](nasty_report())
    rows = [line for line in document.splitlines() if line.endswith(r"\\")]
    assert not [row for row in rows if row.lstrip().startswith(("[", "*"))]
    assert latex_cells(document) == expected_cells()
    assert re.findall(r"\\begin\{tabular\}\{(\w+)\}", document) == ["lrrrrr", "lr"]
    assert "--" not in document  # a ligature: typeset as a dash
    assert [document.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [2, 2, 2]


_PAGE_TAGS = (
    "html", "head", "meta", "title", "link", "style", "body", "a", "header", "h1", "nav", "ul", "li", "main", "section",
    "h2", "p", "div", "table", "thead", "tbody", "tr", "th", "td", "footer", "script",
)  # fmt: skip
"""Elements of a page with one table."""


class _HtmlCells(html.parser.HTMLParser):
    """Collects the text of th and td elements, by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        """Begin a row or a cell; numbers of cells have two parts, which are elements without attributes."""
        assert tag in _PAGE_TAGS or (tag == "span" and self._in_cell and not attrs), attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self._in_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        """End a cell."""
        self._in_cell = self._in_cell and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        """Add to the cell."""
        if self._in_cell:
            self.rows[-1][-1] += data


def test_an_html_parser_reads_the_same_cells() -> None:
    """The page has no element that a name brought, and its table has these cells."""
    parser = _HtmlCells()
    parser.feed(FORMATTERS["html"](nasty_report()))
    assert parser.rows == expected_cells()


@pytest.mark.parametrize("width", [None, 200, 80, 40])
def test_every_cell_is_in_the_text_at_any_width(width: int | None) -> None:
    """No cell is cut or changed, and no name is read as rich's markup or emoji."""
    report = nasty_report(width=width)
    document = FORMATTERS["text"](report)
    for column in range(1, len(report.table.columns)):
        for line in report.table.lines:
            assert [shown for shown in document.splitlines() if line[0] in shown and line[column] in shown], line
    if width:
        assert max(map(cell_len, document.splitlines())) <= width


def test_text_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that set the colours or the width of rich have no effect, nor does a notebook."""
    plain = FORMATTERS["text"](nasty_report())
    variables = {
        "FORCE_COLOR": "1",
        "COLUMNS": "30",
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
        "TTY_COMPATIBLE": "1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert FORMATTERS["text"](nasty_report()) == plain
    assert "\x1b" not in plain


def test_text_for_a_pipe_has_one_line_per_variant() -> None:
    """Without a terminal's width, all columns of a variant are in one line."""
    document = FORMATTERS["text"](dataclasses.replace(REPORT, table=make_table(ROWS, title="T"), width=None))
    assert "a_4|bit  25.0 ±5.0 (−5.0)       0.090  1 h 00 min  1 min 15 s                –\n" in document


def test_text_fits_a_terminal_of_120_columns() -> None:
    """Columns that do not fit are in a further block, cost columns together; wrapped notes are indented."""
    tasks = ("arc_challenge", "hellaswag", "winogrande", "truthfulqa_mc1", "gsm8k")
    rows = [
        dataclasses.replace(row_of("m", scheme), variant=scheme, task=task, value=0.2, stderr=0.25, delta=delta)
        for scheme, delta in (("bf16", None), ("gptq-w4a16-g64", -0.25), ("smoothquant-w8a8", 0.15))
        for task in tasks
    ]
    note = "A note that says much. " * 10
    lines = FORMATTERS["text"](
        Report(runs="r", rows=rows, table=make_table(rows, title="T", notes=[note]), width=120)
    ).splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[2].split() == ["variant", *tasks]
    assert lines[3].split() == ["n=1172"] * 5
    assert lines[7].split("  ")[0] == "smoothquant-w8a8"
    assert "20.0 ±25.0 (+15.0)" in lines[7]
    assert lines[9].split() == ["variant", "GB", "on", "disk", "quantize", "evaluate", "tokens", "computed"]
    assert lines[13].startswith("smoothquant-w8a8 ")
    assert [line[:4] for line in lines[15:]] == ["A no", "  no"]
    assert " ".join(line.strip() for line in lines[15:]) == note.strip()


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(None, "–"), (0.4, "0 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (7260, "2 h 01 min")],
)
def test_durations_have_one_or_two_units(seconds: float | None, expected: str) -> None:
    """Seconds below one minute, minutes below one hour, hours above; never '60 s'."""
    assert format_duration(seconds) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0"), (999, "999"), (1000, "1.0 k"), (9_949, "9.9 k"), (9_951, "10 k"), (999_499, "999 k"),
        (999_500, "1.0 M"), (65_400_000, "65 M"), (2.5e9, "2.5 G"), (7.4e12, "7400 G"),
    ],
)  # fmt: skip
def test_large_numbers_have_an_si_prefix(count: float, expected: str) -> None:
    """Two or three digits, never '1000 k' or '10.0 k'."""
    assert format_count(count) == expected


def test_token_savings_have_a_ratio_if_there_are_any() -> None:
    """The ratio is left out if it is 1.0, and if nothing was computed."""
    assert format_token_savings(1_200_000, 310_000) == "1.2 M requested, 310 k computed (3.9x fewer)"
    assert format_token_savings(900, 900) == "900 requested, 900 computed"
    assert format_token_savings(900, 0) == "900 requested, 0 computed"


@pytest.mark.parametrize(("number", "expected"), [(0.04, "0.0"), (-0.04, "0.0"), (-1.26, "−1.3"), (2.0, "+2.0")])
def test_differences_carry_their_sign(number: float, expected: str) -> None:
    """A minus sign (U+2212), a plus sign, and no sign on zero."""
    assert format_signed(number) == expected


def row_of(model: str, scheme: str) -> Row:
    """Return a row of the main metric."""
    return Row(
        run="r", variant="v", model=model, scheme=scheme, tool="llmcompressor", backend="accelerate",
        task="arc_challenge", metric="acc_norm", filter="none", value=0.5, stderr=None, n=1172, is_main=True,
    )  # fmt: skip


def test_published_scores_are_added_for_the_same_model_scheme_and_task() -> None:
    """The study's 61.52 for FP8 of Llama-3.1-8B-Instruct is found by our names; a scheme that it lacks is not."""
    rows, notes = add_published_scores(
        [row_of("meta-llama/Llama-3.1-8B-Instruct", "fp8"), row_of("meta-llama/Llama-3.1-8B-Instruct", "nf4")],
        find_studies("published", place="--compare"),
    )
    assert rows[0].published_value == 61.52
    assert rows[0].published_delta == pytest.approx(50 - 61.52)
    assert rows[1].published_value is None
    assert "arxiv-2409.11055v6" in notes[0]


def test_an_unknown_study_is_refused_with_the_known_ones() -> None:
    """The message for `--compare nature` has the studies in the catalog."""
    with pytest.raises(
        UserInputError, match=r"--compare nature: unknown study\. Studies in the catalog: arxiv-2409.11055v6\."
    ):
        find_studies("nature", place="--compare")


def test_a_difference_across_back_ends_is_marked() -> None:
    """A difference has a dagger if, and only if, another backend evaluated the baseline."""
    variants = (
        variant("bf16", "none", 0.3, backend="vllm"),
        variant("fp8", "llmcompressor", 0.25),
        variant("int8", "llmcompressor", 0.25, backend="vllm"),
    )
    rows = make_rows(dataclasses.replace(RESULTS, variants=variants))
    table = make_table(rows, title="Demo")
    cells = {line[0]: line[1] for line in table.lines}
    assert (cells["fp8"].count("†"), cells["int8"].count("†"), cells["bf16"].count("†")) == (1, 0, 0)
    assert {row.baseline_backend for row in rows if row.scheme == "fp8"} == {"vllm"}
    assert r"\dag{}" in FORMATTERS["latex"](Report(runs="demo", rows=rows, table=table))
