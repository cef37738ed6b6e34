"""Rows, table and formats of a report, from results as the store gives them."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import io
import json
from typing import Any

import pytest

from hpcq.core.errors import UserInputError
from hpcq.report.formats import WRITERS, Report
from hpcq.report.published import beside_published, studies_named
from hpcq.report.rows import Row, make_rows
from hpcq.report.table import duration, make_table, rounded, sharing, signed
from hpcq.store import Results, Score, VariantScores


def variant(name: str, tool: str, value: float, **provenance: Any) -> VariantScores:
    """A variant of one model with one score in two metrics."""
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
ROWS = make_rows(RESULTS, order=["some-model--bf16--1", "some-model--a_4|bit--1"])
REPORT = Report(
    runs="demo", rows=ROWS, table=make_table(ROWS, title="Demo <1>", notes=["Mind & think: 5 % $ { } ~ ^ \\"])
)


def test_each_row_stands_beside_its_models_unquantized_score() -> None:
    """A quantized row has baseline and difference, the baseline itself has none, and the order is the plan's."""
    assert [(row.scheme, row.metric, row.baseline_value) for row in ROWS] == [
        ("bf16", "acc", None),
        ("bf16", "acc_norm", None),
        ("a_4|bit", "acc", 0.4),
        ("a_4|bit", "acc_norm", 0.3),
    ]
    assert [row.delta for row in ROWS[2:]] == pytest.approx([-0.05, -0.05])
    assert [row.is_main for row in ROWS] == [False, True, False, True]


def test_a_model_without_unquantized_variant_has_no_differences() -> None:
    """No baseline, no difference: nothing is compared with another model's score."""
    rows = make_rows(Results(run="r", inputs="", provenance={}, merge={}, variants=RESULTS.variants[:1]))
    assert {row.delta for row in rows} == {None}


def test_the_table_shows_score_error_difference_and_costs() -> None:
    """A cell reads 'score ±error (difference)' in percent; sizes are GB; times are words; tokens stand beside all."""
    costs = ("GB on disk", "quantize", "evaluate", "tokens computed")
    assert REPORT.table.headings == ("variant", "arc_challenge (n=40)", *costs)
    assert REPORT.table.lines == (
        ("bf16", "30.0 ±5.0", "0.269", "–", "1 min 15 s", "310 k of 1.2 M"),
        ("a_4|bit", "25.0 ±5.0 (−5.0)", "0.090", "1 h 00 min", "1 min 15 s", "–"),
    )


def test_programs_get_the_tokens_and_how_they_were_shared() -> None:
    """Each row carries its variant's counts, and nothing where none are known."""
    read = list(csv.DictReader(io.StringIO(WRITERS["csv"](REPORT))))
    told = [(row["asked_tokens"], row["computed_tokens"], row["prefix_sharing"]) for row in read]
    assert told == [("1200000", "310000", "exact")] * 2 + [("", "", "")] * 2


def test_every_format_has_every_main_score() -> None:
    """Whatever the format, both variants' scores and the note are in it."""
    for name, write in WRITERS.items():
        document = write(REPORT)
        assert "bf16" in document, name
        assert ("25.0" in document) or ("0.25" in document), name


def test_csv_and_json_have_all_rows_and_fields() -> None:
    """Programs get every metric, not the pivoted table."""
    read = list(csv.DictReader(io.StringIO(WRITERS["csv"](REPORT))))
    assert [float(row["value"]) for row in read] == [row.value for row in ROWS]
    document = json.loads(WRITERS["json"](REPORT))
    assert document["schema"] == 1
    assert document["rows"][3]["delta"] == ROWS[3].delta
    assert {"model", "scheme", "tool", "backend", "task", "metric", "value", "stderr", "n", "baseline_value"} <= set(
        document["rows"][0]
    )


def test_text_of_the_user_cannot_break_a_format() -> None:
    """Bars, angle brackets, ampersands, percent signs and backslashes are escaped for their format."""
    assert r"a\_4|bit" in WRITERS["latex"](REPORT)
    assert r"5 \% \$ \{ \} \textasciitilde{} \textasciicircum{} \textbackslash{}" in WRITERS["latex"](REPORT)
    assert r"| a_4\|bit |" in WRITERS["md"](REPORT)
    page = WRITERS["html"](REPORT)
    assert "<h1>Demo &lt;1&gt;</h1>" in page
    html.parser.HTMLParser().feed(page)


def test_text_columns_are_aligned() -> None:
    """Every line of the text table has its cells under their heading."""
    lines = WRITERS["text"](REPORT).splitlines()
    heading, detail, first = lines[2], lines[3], lines[5]
    assert heading.index("GB on disk") + len("GB on disk") == first.index("0.269") + len("0.269")
    assert heading.index("arc_challenge") + len("arc_challenge") == len(detail) == first.index("5.0") + len("5.0")
    assert detail.strip() == "n=40"


def test_text_fits_a_terminal_of_120_columns() -> None:
    """Columns that do not fit go on below, sizes and times together; notes go on with two blanks before them."""
    tasks = ("arc_challenge", "hellaswag", "winogrande", "truthfulqa_mc1", "gsm8k")
    rows = [
        dataclasses.replace(row_of("m", scheme), variant=scheme, task=task, value=0.2, stderr=0.25, delta=delta)
        for scheme, delta in (("bf16", None), ("gptq-w4a16-g64", -0.25), ("smoothquant-w8a8", 0.15))
        for task in tasks
    ]
    note = "A note that says much. " * 10
    lines = WRITERS["text"](Report(runs="r", rows=rows, table=make_table(rows, title="T", notes=[note]))).splitlines()
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
    ("seconds", "words"),
    [(None, "–"), (0.4, "0 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (7260, "2 h 01 min")],
)
def test_durations_are_said_as_a_person_says_them(seconds: float | None, words: str) -> None:
    """Seconds under a minute, minutes under an hour, hours above; never '60 s'."""
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0"), (999, "999"), (1000, "1.0 k"), (9_949, "9.9 k"), (9_951, "10 k"), (999_499, "999 k"),
        (999_500, "1.0 M"), (65_400_000, "65 M"), (2.5e9, "2.5 G"), (7.4e12, "7400 G"),
    ],
)  # fmt: skip
def test_large_numbers_are_said_in_two_or_three_digits(count: float, words: str) -> None:
    """Never '1000 k', nor '10.0 k'."""
    assert rounded(count) == words


def test_what_sharing_saves_is_said_where_it_saves_anything() -> None:
    """The ratio stands where it is not one, also where nothing had to be computed."""
    assert sharing(1_200_000, 310_000) == "1.2 M asked for, 310 k computed (3.9 times fewer)"
    assert sharing(900, 900) == "900 asked for, 900 computed"
    assert sharing(900, 0) == "900 asked for, 0 computed"


@pytest.mark.parametrize(("number", "words"), [(0.04, "0.0"), (-0.04, "0.0"), (-1.26, "−1.3"), (2.0, "+2.0")])
def test_differences_carry_their_sign(number: float, words: str) -> None:
    """A true minus, a plus, and no sign on nothing."""
    assert signed(number) == words


def row_of(model: str, scheme: str) -> Row:
    """A main row."""
    return Row(
        run="r", variant="v", model=model, scheme=scheme, tool="llmcompressor", backend="accelerate",
        task="arc_challenge", metric="acc_norm", filter="none", value=0.5, stderr=None, n=1172, is_main=True,
    )  # fmt: skip


def test_published_scores_stand_beside_ours_where_all_is_the_same() -> None:
    """The study's 61.52 for FP8 of Llama-3.1-8B-Instruct is found by our names; another scheme's is not."""
    rows, notes = beside_published(
        [row_of("meta-llama/Llama-3.1-8B-Instruct", "fp8"), row_of("meta-llama/Llama-3.1-8B-Instruct", "nf4")],
        studies_named("published", place="--compare"),
    )
    assert rows[0].published_value == 61.52
    assert rows[0].published_delta == pytest.approx(50 - 61.52)
    assert rows[1].published_value is None
    assert "arxiv-2409.11055v6" in notes[0]


def test_an_unknown_study_is_refused_with_those_there_are() -> None:
    """`--compare nature` names what can be compared with."""
    with pytest.raises(UserInputError, match=r"--compare nature: no such study; the catalog has arxiv-2409.11055v6\."):
        studies_named("nature", place="--compare")


def test_a_difference_across_back_ends_is_marked() -> None:
    """Where the baseline was computed by another back end a dagger stands at the difference, and nowhere else."""
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
    assert r"\dag{}" in WRITERS["latex"](Report(runs="demo", rows=rows, table=table))
