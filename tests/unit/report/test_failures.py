"""Variants without a score in reports: never fewer lines than the manifest asked for, in every output format."""

from __future__ import annotations

import csv
import io
import json

import pytest

from hpcq.core.attempts import Attempt, AttemptRecord
from hpcq.core.errors import RunIncompleteError
from hpcq.core.failures import Failure
from hpcq.core.outcomes import Outcome
from hpcq.core.paths import RunLayout
from hpcq.core.work_records import UnitKind
from hpcq.monitor.units import UnitRecord
from hpcq.report.failed_variants import VariantFailure
from hpcq.report.formats import FORMATTERS, Report
from hpcq.report.make_report import MergedRun, make_report
from hpcq.report.rows import make_rows
from hpcq.report.table import make_table
from hpcq.run.operations import failed_variants
from hpcq.run.record import RunRecord
from hpcq.store import Results
from tests.unit.report.test_make_report import VARIANTS, merged
from tests.unit.report.test_marks import variant

FAILURE = VariantFailure(
    unit="evaluate.model--w4--1",
    state="failed",
    failure="invalid input",
    reason="model.layers.0 has NaN weights.",
    log="/logs/r/evaluate.model--w4--1.1.log",
)


def report(failure: VariantFailure | None = FAILURE) -> Report:
    """Return the report of a run in which one variant has only one of two scores, and one has none."""
    variants = (
        variant("bf16", scores={"gsm8k": 0.5, "truthfulqa_mc1": 0.25}),
        variant("fp8", scores={"gsm8k": 0.5}),
        variant("w4", scores={}),
    )
    rows = make_rows(
        Results(run="r", inputs="", provenance={}, merge={}, variants=variants),
        task_order=["gsm8k", "truthfulqa_mc1"],
        failures={"model--w4--1": failure} if failure else {},
    )
    return Report(runs="r", rows=rows, table=make_table(rows, title="T"))


@pytest.mark.parametrize("name", [name for name in FORMATTERS if name != "csv"])
def test_every_format_has_the_variant_the_class_the_sentence_and_the_log(name: str) -> None:
    """The failure of a variant is in each format (reported by a user: its line was missing)."""
    text = " ".join(FORMATTERS[name](report()).replace("\\_", "_").split())
    for part in ("w4", "failed", "(invalid input)" if name != "json" else "invalid input", str(FAILURE.reason)[:-1]):
        assert part in text
    assert str(FAILURE.log) in text.replace("{-}", "-").replace("-{}", "-")


def test_a_table_has_a_line_for_each_variant() -> None:
    """A failed unit gives the state in its cells, a score that is only missing a dash."""
    table = report().table
    assert [line[:3] for line in table.lines] == [
        ("bf16", "50.0 ±10.0", "25.0 ±10.0"),
        ("fp8", "50.0 ±10.0 (0.0)", "–"),
        ("w4", "failed", "failed"),
    ]
    assert table.notes == (
        f"w4: evaluate.model--w4--1 failed (invalid input): model.layers.0 has NaN weights. Log: {FAILURE.log}",
    )
    assert [line[:3] for line in report(failure=None).table.lines][2] == ("w4", "–", "–")


def test_json_and_csv_have_a_row_for_each_variant_and_task() -> None:
    """Programs get a row without a value, with the metric that is missing, and with the failure."""
    rows = json.loads(FORMATTERS["json"](report()))["rows"]
    assert [(row["scheme"], row["task"], row["metric"], row["value"]) for row in rows] == [
        ("bf16", "gsm8k", "exact_match", 0.5),
        ("bf16", "truthfulqa_mc1", "acc", 0.25),
        ("fp8", "gsm8k", "exact_match", 0.5),
        ("fp8", "truthfulqa_mc1", "acc", None),
        ("w4", "gsm8k", "exact_match", None),
        ("w4", "truthfulqa_mc1", "acc", None),
    ]
    assert [row["failure"] for row in rows] == [None, None, None, None, vars(FAILURE), vars(FAILURE)]
    lines = list(csv.DictReader(io.StringIO(FORMATTERS["csv"](report()))))
    assert [line["failure"] for line in lines] == ["", "", "", "", FAILURE.sentence, FAILURE.sentence]


def test_failures_of_a_run_are_those_of_its_attempts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Class, sentence and newest log come from the last attempt; of several shards, the first that failed counts."""
    folder = tmp_path_factory.mktemp("run")
    layout = RunLayout(name="r", runs=folder, checkpoints=folder, logs=folder / "logs")
    units = tuple(
        UnitRecord(id=f"evaluate.v--w4--123456789abc.{shard}of2", kind=UnitKind.EVALUATE, variant_id="v", address="a")
        for shard in range(2)
    )
    for attempt in (1, 2):
        log = layout.unit_log(units[1].id, attempt)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("log")
        record = AttemptRecord(
            unit=units[1].id, attempt=attempt, job_id="1", node="n", pid=1, start="2026-01-01T00:00:00+00:00",
            outcome=Outcome.FAILED, failure=Failure.OUT_OF_MEMORY, reason=f"Reason {attempt}.",
        )  # fmt: skip
        Attempt(layout.attempts, record)
    found = failed_variants(RunRecord(layout=layout, plan_document={}, units=units))
    expected = VariantFailure(
        unit=units[1].id,
        state="failed",
        failure="out of memory",
        reason="Reason 2.",
        log=str(layout.unit_log(units[1].id, 2)),
    )
    assert found == {"v": expected}


def test_a_run_without_any_score_reports_its_failures(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The message of a run without scores has a sentence for each failed variant."""
    run = merged(tmp_path_factory.mktemp("runs"), "r", scores=False)
    failed = MergedRun(
        name="r", results=run.results, plan_document=run.plan_document, failures={next(iter(VARIANTS)): FAILURE}
    )
    with pytest.raises(RunIncompleteError) as error:
        make_report([failed])
    assert str(error.value) == f"r: no task is complete enough to be scored yet.\n{FAILURE.sentence}"
