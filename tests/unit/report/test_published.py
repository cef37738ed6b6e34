"""Comparison with published scores on the study's scale: normalization, intervals, protocol."""

from __future__ import annotations

import dataclasses
import json

import pytest

from hpcq.catalog.leaderboard import NORMALIZED_PARTS
from hpcq.catalog.published_tables import STUDY, table_rows
from hpcq.report.baselines import RequestSettings
from hpcq.report.published import add_published_scores
from hpcq.report.published_judged import judged_documents, judged_tables
from hpcq.report.published_tables import published_tables
from hpcq.report.rows import Row
from hpcq.report.table import line_names

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def row(task: str, metric: str, value: float, *, n: int = 100, scheme: str = "bf16", is_main: bool = False) -> Row:
    """Return a row of Llama-3.1-8B-Instruct."""
    return Row(
        run="r", variant=scheme, model=MODEL, scheme=scheme, tool="none" if scheme == "bf16" else "llmcompressor",
        backend="vllm", task=task, metric=metric, filter="none", value=value, stderr=0.01, n=n, is_main=is_main,
        dtype="bfloat16" if scheme == "bf16" else None,
    )  # fmt: skip


def settings(**task: object) -> dict[tuple[str, str], RequestSettings]:
    """Return the settings of one task of the variant bf16."""
    one = RequestSettings.read(
        {"tasks": json.dumps([task]), "backend_versions": "{}", "options": json.dumps({"max_length": None})}
    )
    return {("r", "bf16"): one}


def compared(*rows: Row) -> Row:
    """Return the first row with its published score."""
    return add_published_scores(rows, [STUDY])[0][0]


def test_mt_bench_has_the_published_side_alone() -> None:
    """Turns and categories of Llama-3.1-8B as printed, in the order of the study; the report's own side is empty."""
    rows = [row("arc_challenge", "acc_norm", 0.6, scheme=scheme) for scheme in ("bf16", "gptq-w4a16", "fp8")]
    turns, categories = judged_tables(rows, line_names(rows))
    assert [column.name for column in turns.columns] == ["variant", "", "turn 1", "turn 2", "average"]
    assert turns.lines == (
        ("bf16", "here", *["not evaluated"] * 3),
        ("", "published", "8.17", "7.61", "7.89"),
        ("gptq-w4a16", "here", *["not evaluated"] * 3),
        ("", "published", "7.89", "7.39", "7.64"),
    )
    assert [column.name for column in categories.columns][2:] == [
        "writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities", "average",
    ]  # fmt: skip
    printed = {(line["model"], line["method"]): line for line in table_rows("mtbench-categories")}[
        "Llama-3.1-8B-it", "FP16"
    ]
    assert categories.lines[1][2:] == tuple(list(printed.values())[2:])
    documents = judged_documents(rows)
    assert {one["value"] for one in documents} == {None}
    assert [one["published_value"] for one in documents if one["suite"] == "mt-bench-turns"][:3] == [8.17, 7.61, 7.89]


def test_musr_is_compared_on_the_normalized_scale() -> None:
    """Raw subtasks of 0.7, 0.4 and 0.6 are 35.0, the study has 8.88; the interval has the errors of both."""
    parts = [
        row(part.task, "acc_norm", value)
        for part, value in zip(NORMALIZED_PARTS["leaderboard_musr"], (0.7, 0.4, 0.6), strict=True)
    ]
    found = compared(row("leaderboard_musr", "acc_norm", 0.57, is_main=True), *parts)
    assert (found.published_value, found.published_scale) == (8.88, "normalized")
    assert found.published_own == pytest.approx(35.0)
    assert found.published_delta == pytest.approx(35.0 - 8.88)
    own_error = (2.0**2 + 1.25**2 + 1.5**2) ** 0.5 / 3
    assert found.published_high == pytest.approx(26.12 + 1.96 * (own_error**2 + 2.9394**2) ** 0.5, abs=0.01)


def test_gpqa_is_compared_with_the_subtask_of_the_study() -> None:
    """The group's score is not compared: the published score is that of gpqa_extended."""
    group = row("leaderboard_gpqa", "acc_norm", 0.9, is_main=True)
    found = compared(group, row("leaderboard_gpqa_extended", "acc_norm", 0.30, n=546))
    assert found.published_own == pytest.approx(100 * 0.05 / 0.75)
    assert not any("items" in one for one in found.published_protocol)
    assert compared(group).published_value is None


def test_ifeval_is_the_mean_of_two_metrics() -> None:
    """Strict accuracy per prompt and per instruction; one alone is not compared."""
    prompts = row("leaderboard_ifeval", "prompt_level_strict_acc", 0.4, is_main=True)
    assert compared(prompts).published_value is None
    found = compared(prompts, row("leaderboard_ifeval", "inst_level_strict_acc", 0.5))
    assert found.published_own == pytest.approx(45.0)


def test_protocol_differences_are_named() -> None:
    """Number of examples, items, tool and data type; nothing with the study's protocol."""
    own = row("arc_challenge", "acc_norm", 0.5, is_main=True)
    ((few,), _) = add_published_scores([own], [STUDY], settings(name="arc_challenge", num_fewshot=None))
    assert few.published_protocol == (
        "0 examples per prompt (study: 25)",
        "100 items (study: 1172)",
        "computed in bfloat16 (study: float16)",
    )
    same = dataclasses.replace(own, n=1172, dtype="float16")
    ((equal,), _) = add_published_scores([same], [STUDY], settings(name="arc_challenge", num_fewshot=25))
    assert equal.published_protocol == ()
    awq = row("arc_challenge", "acc_norm", 0.5, n=1172, scheme="awq-w4a16", is_main=True)
    assert compared(awq).published_protocol == (
        "examples per prompt not recorded (study: 25)",
        "quantized by llmcompressor (study: autoawq)",
    )


def test_the_tables_have_both_scores_and_their_difference() -> None:
    """Version 1 in percent; version 2 with raw and normalized scores; notes on protocol and misprints."""
    rows, _ = add_published_scores(
        [
            row("arc_challenge", "acc_norm", 0.6, is_main=True),
            row("leaderboard_mmlu_pro", "acc", 0.4, is_main=True),
        ],
        [STUDY],
    )
    first, second = published_tables(rows, line_names(rows))
    assert [line[:4] for line in first.lines] == [
        ("bf16", "here", "–", "60.00"),
        ("", "published", "16", "60.24"),
        ("", "difference", "", "−0.2‡ (−3.7 to +3.2)"),
    ]
    assert [line[1:4] for line in second.lines[:3]] == [
        ("here", "–", "33.33"),
        ("here, raw", "", "40.00"),
        ("published", "16", "30.90"),
    ]
    assert any("100 items (study: 12032)" in note for note in second.notes)


def test_a_misprint_is_shown_where_it_is_compared() -> None:
    """The corrected score is used, and a note says what is printed."""
    own = dataclasses.replace(row("truthfulqa_mc2", "acc", 0.5, is_main=True), model="meta-llama/Llama-3.2-3B-Instruct")
    rows, _ = add_published_scores([own], [STUDY])
    assert rows[0].published_value == 49.79
    (table,) = published_tables(rows, line_names(rows))
    assert any("47.79 is printed, 49.79 is used" in note for note in table.notes)
