"""Variants that several tools have made with the same method are shown next to each other."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from hpcq.report.formats import FORMATTERS, Report
from hpcq.report.implementations_table import TITLE
from hpcq.report.make_report import build_report
from hpcq.report.table import Table
from tests.report_sample import QWEN, VARIANTS, Sample, SampleVariant, write_sample

GPTQ = dataclasses.replace(VARIANTS[2], method="gptq", marks=())
AUTOGPTQ = dataclasses.replace(GPTQ, scheme="autogptq:gptq-w4a16-g128", quantizer="autogptq", noise=0.9)
OTHER_MODEL = dataclasses.replace(GPTQ, model=QWEN, quantizer="gptqmodel")
BASELINES = (VARIANTS[0], dataclasses.replace(VARIANTS[0], model=QWEN))


def report_of(folder: Path, *variants: SampleVariant, windows: int = 24) -> Report:
    """Return the report of the baselines and `variants`."""
    sample = Sample(n=20, tasks=("arc_challenge",), windows=windows, variants=(*BASELINES, *variants))
    return build_report([write_sample(folder / "study", sample)])


def table_of(report: Report) -> Table | None:
    """Return the table of implementations."""
    return next((table for table in report.more if table.title == TITLE), None)


def test_tools_with_one_method_are_next_to_each_other(tmp_path: Path) -> None:
    """Also if another variant stands between them; a variant of another model or method is not among them."""
    report = report_of(tmp_path, GPTQ, VARIANTS[1], OTHER_MODEL, AUTOGPTQ)
    table = table_of(report)
    assert table
    assert [line[2] for line in table.lines] == ["llmcompressor", "autogptq"]
    assert {line[0] for line in table.lines} == {"gptq bf16"}
    assert all(line[5:] == ("5.700", "31 min 40 s", "31.200") for line in table.lines)
    [first, second] = (float(line[4].split()[0]) for line in table.lines)
    assert first < second
    verdict = next(note for note in table.notes if note.startswith("gptq bf16: "))
    assert "is closest to unquantized" in verdict
    assert "autogptq" in verdict
    for output_format in ("text", "md", "latex", "html"):
        assert "Implementations of one method" in FORMATTERS[output_format](report)
    rows = json.loads(FORMATTERS["json"](report))["rows"]
    assert {row["quantize_peak_bytes"] for row in rows} == {None, 31_200_000_000}


def test_equal_tools_are_not_ranked(tmp_path: Path) -> None:
    """Two variants with the same distance from the baseline: the text cannot tell them apart."""
    table = table_of(report_of(tmp_path, GPTQ, dataclasses.replace(AUTOGPTQ, noise=GPTQ.noise)))
    assert table
    assert any("the text cannot tell" in note for note in table.notes)


def test_without_a_panel_the_table_has_costs_alone(tmp_path: Path) -> None:
    """Perplexity and KL are missing, and nothing is ranked."""
    table = table_of(report_of(tmp_path, GPTQ, AUTOGPTQ, windows=0))
    assert table
    assert {line[3:5] for line in table.lines} == {("\N{EN DASH}", "\N{EN DASH}")}
    assert len(table.notes) == 1


def test_one_tool_needs_no_table(tmp_path: Path) -> None:
    """Two schemes of one tool are no implementations of one method."""
    other = dataclasses.replace(GPTQ, scheme="gptq-w4a16-g64")
    assert table_of(report_of(tmp_path, GPTQ, other, OTHER_MODEL)) is None
