"""Fidelity panel in reports: table, order, notes, all formats, and no effect on scores."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from hpcq.core.work_records import PANEL_TASK
from hpcq.report.exports.lm_eval import export_lm_eval
from hpcq.report.formats import FORMATTERS, Report, page_content
from hpcq.report.make_report import MergedRun, build_report
from hpcq.report.page.figures import write_figures
from tests.report_sample import LLAMA, QWEN, VARIANTS, Sample, write_sample

TASKS = ("arc_challenge", "winogrande")
COMPARED = [one for one in VARIANTS if one.has_results and not one.marks] + [VARIANTS[2]]


def sample(**fields: object) -> Sample:
    """A small run with a panel of 12 windows."""
    defaults = {"n": 20, "tasks": TASKS, "windows": 12, "variants": COMPARED}
    return Sample(**{**defaults, **fields})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MergedRun:
    """The run's results and plan."""
    return write_sample(tmp_path_factory.mktemp("report") / "study", sample())


@pytest.fixture(scope="module")
def report(run: MergedRun) -> Report:
    """The report of the run."""
    return build_report([run])


def test_variants_are_compared_with_their_own_baseline(report: Report) -> None:
    """KL grows with the noise of a scheme; a baseline is compared with its second reading, which is far closer."""
    found = {(one.variant, one.is_noise_floor): one for one in report.panels}
    assert len(found) == len(COMPARED)
    for model in (LLAMA, QWEN):
        base, fp8, gptq = (
            next(
                one
                for (name, _), one in found.items()
                if name.startswith(model.split("/")[-1].lower()) and part in name
            )
            for part in ("bf16", "fp8", "gptq")
        )
        assert base.is_noise_floor
        assert 0 <= base.divergence.value < 1e-6 < fp8.divergence.value < gptq.divergence.value
        assert fp8.divergence.low < fp8.divergence.value < fp8.divergence.high
        assert gptq.agreement.value < fp8.agreement.value <= base.agreement.value == 1
        assert fp8.perplexity_ratio.value == pytest.approx(fp8.perplexity / base.perplexity)
        assert (fp8.windows, fp8.positions, len(fp8.window_divergences)) == (12, 240, 12)
        assert np.mean(fp8.window_divergences) == pytest.approx(fp8.divergence.value)


def test_the_table_states_floor_closest_and_caution(report: Report) -> None:
    """Its notes name the closest variant of each model, the noise floor, and what KL does not show."""
    table = report.panel_closeness
    assert table
    assert [line[0] for line in table.lines if line[0].endswith("(again)")] == [
        "Llama-3.1-8B-Instruct bf16 (again)",
        "Qwen2.5-7B-Instruct bf16 (again)",
    ]
    notes = " ".join(table.notes)
    assert "Closest to unquantized: Llama-3.1-8B-Instruct fp8-dynamic." in notes
    assert "compared with itself in batches of another size" in notes
    assert "not in which direction (arXiv 2606.19558)" in notes


def test_every_format_has_the_panel(report: Report, tmp_path: Path) -> None:
    """Text, Markdown, LaTeX and the page have the table; JSON and CSV have the numbers; figures have the plot."""
    for name in ("text", "md", "latex", "html"):
        assert "Fidelity to unquantized on held-out text" in FORMATTERS[name](report)
    document = json.loads(FORMATTERS["json"](report))["fidelity_panel"]
    assert [one["variant"] for one in document] == [one.variant for one in report.panels]
    by_variant = {one.variant: one for one in report.panels}
    for row in csv.DictReader(io.StringIO(FORMATTERS["csv"](report))):
        own = by_variant[row["variant"]]
        assert float(row["panel_divergence"]) == own.divergence.value
        assert float(row["panel_perplexity_ratio_high"]) == own.perplexity_ratio.high
    page = FORMATTERS["html"](report)
    assert "On held-out text" in page
    assert 'id="panel-plot-title"' in page
    assert "fidelity-panel.svg" in write_figures(tmp_path, page_content(report))


def test_the_panel_is_no_score(report: Report, run: MergedRun, tmp_path: Path) -> None:
    """Rows, means and answers are those of a run without it, and exports have no such task."""
    without = build_report([write_sample(tmp_path / "study", sample(windows=0))])
    assert report.rows == without.rows
    assert report.suites == without.suites
    assert report.answers == without.answers
    assert report.table == without.table
    assert (without.panels, without.panel_closeness) == ((), None) or not without.panels
    assert "fidelity_panel" not in FORMATTERS["json"](without)
    names = [path.name for path in export_lm_eval([run], tmp_path / "export")]
    assert names
    assert not any(PANEL_TASK in name for name in names)


def test_other_tokens_are_not_compared(tmp_path: Path) -> None:
    """A variant whose tokenizer makes other tokens is named with the reason, and has no number."""
    report = build_report([write_sample(tmp_path / "study", sample(other_tokens=["fp8-dynamic"]))])
    assert not [one for one in report.panels if "fp8" in one.variant]
    assert report.panel_closeness
    notes = " ".join(report.panel_closeness.notes)
    assert "fp8-dynamic: not compared, because its tokenizer makes other tokens of the text than that of" in notes


def test_a_variant_without_a_baseline_is_not_compared(tmp_path: Path) -> None:
    """Without the unquantized variant there is nothing to compare with, and the report says so."""
    quantized = [one for one in COMPARED if one.scheme != "bf16" and one.model == LLAMA]
    report = build_report([write_sample(tmp_path / "study", sample(variants=quantized))])
    assert not report.panels
    assert report.panel_closeness
    assert "because no unquantized variant has read the fidelity panel" in " ".join(report.panel_closeness.notes)
