"""Paired comparisons in reports: from items in results.h5 to verdicts in every format."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcq.report.make_report import MergedRun, make_report
from hpcq.report.row_items import RowItems
from hpcq.store import (
    GroupShares,
    Index,
    ItemTables,
    MergeReport,
    Score,
    TaskItems,
    VariantResults,
    open_results,
    write_results,
)

NO_RESPONSES = Index(tables=(), conflicts=(), set_aside=(), segments=(), duplicates=0, ignored=0, inputs="an address")
N = 400


def table(task: str, right: int, metric: str, shift: int = 0, filter_: str = "none") -> TaskItems:
    """Return items of which `right` are right, from the item `shift` on."""
    values = np.zeros((N, 2))
    values[:, 1] = 1.0
    values[(np.arange(right) + shift) % N, 0] = 1.0
    return TaskItems(
        task=task,
        doc_id=np.arange(N),
        target=np.full(N, -1),
        digest=np.array([f"{number:032x}" for number in range(N)], dtype="S32"),
        values={(metric, filter_): values},
    )


def merged(folder: Path, right: Mapping[str, Mapping[str, int]], *, with_items: bool = True, **plan: Any) -> MergedRun:
    """Write the results of a run.

    Args:
        folder: Folder of the run.
        right: By scheme and task: number of right items.
        with_items: Store the scores of items, as the merge does.
        plan: Fields of the plan document.
    """
    metrics = {"arc_challenge": "acc_norm", "winogrande": "acc", "truthfulqa_mc2": "acc"}
    variants = []
    for scheme, tasks in right.items():
        scores = [
            Score(task=task, metric=metrics[task], filter="none", value=count / N, stderr=0.01, n=N)
            for task, count in tasks.items()
        ]
        variants.append(
            VariantResults(
                variant=f"m--{scheme}--1",
                index=NO_RESPONSES,
                scores=scores,
                provenance={
                    "model": "m", "scheme": scheme, "tool": "none" if scheme == "bf16" else "llmcompressor",
                    "backend": "accelerate", "evaluate_seconds": 5.0, "dtype": "bfloat16",
                    "recipe": json.dumps({"weights": "bf16"}),
                },
                items=ItemTables(
                    tasks=[table(task, count, metrics[task]) for task, count in tasks.items()] if with_items else ()
                ),
            )
        )  # fmt: skip
    folder.mkdir(parents=True)
    report = MergeReport(expected=9, found=9, missing=0, duplicates=0, conflicts=(), set_aside=())
    write_results(folder / "results.h5", run=folder.name, provenance={}, variants=variants, merge=report)
    units = [{"variant": one.variant, "tasks": list(metrics)} for one in variants]
    return MergedRun(name=folder.name, results=folder / "results.h5", plan_document={"units": units, **plan})


RIGHT = {
    "bf16": {"arc_challenge": 200, "winogrande": 200},
    "worse": {"arc_challenge": 150, "winogrande": 200},
    "better": {"arc_challenge": 250, "winogrande": 260},
}


def rows_of(document: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the rows with a score by scheme and task."""
    return {(row["scheme"], row["task"]): row for row in document["rows"] if row["value"] is not None}


def test_a_row_has_its_comparison(tmp_path: Path) -> None:
    """50 lost items of 400 are worse; the baseline has an interval and no comparison; no change cannot be told."""
    document = json.loads(make_report([merged(tmp_path / "r", RIGHT)], output_format="json"))
    rows = rows_of(document)
    worse = rows["worse", "arc_challenge"]
    assert (worse["gained"], worse["lost"], worse["verdict"]) == (0, 50, "worse")
    assert worse["delta_low"] < worse["delta"] < worse["delta_high"] < 0
    assert worse["low"] < worse["value"] < worse["high"]
    assert worse["recovery"] == pytest.approx(0.75)
    assert worse["adjusted_p_value"] > worse["p_value"]
    baseline = rows["bf16", "arc_challenge"]
    assert baseline["low"] < 0.5 < baseline["high"]
    assert baseline["verdict"] is None
    assert rows["worse", "winogrande"]["verdict"] == "equivalent"
    assert [suite["verdict"] for suite in document["suites"]] == ["worse", "better"]
    assert document["answers"][0].startswith("worse: worse on arc_challenge −12.5 (")


def test_the_margin_decides_what_is_equivalent(tmp_path: Path) -> None:
    """No changed item of 400 is evidence for a margin of 1 point, not of 0.1; the smallest of the manifests counts."""
    run = merged(tmp_path / "r", RIGHT)
    strict = merged(tmp_path / "s", RIGHT, margin_points=0.1)

    def verdict(*runs: MergedRun, **options: float) -> str:
        rows = rows_of(json.loads(make_report(runs, output_format="json", **options)))
        return str(rows["worse", "winogrande"]["verdict"])

    assert verdict(run) == "equivalent"
    assert verdict(run, margin_points=0.1) == "cannot tell"
    assert verdict(strict) == "cannot tell"
    assert verdict(run, strict) == "cannot tell"


def test_a_task_that_neither_model_can_do_shows_nothing(tmp_path: Path) -> None:
    """Observed: 0 of 400 items correct before and after was "equivalent"."""
    nothing = {scheme: {"arc_challenge": 0, "winogrande": 100} for scheme in ("bf16", "worse")}
    rows = rows_of(json.loads(make_report([merged(tmp_path / "r", nothing)], output_format="json")))
    assert rows["worse", "arc_challenge"]["verdict"] == "cannot tell"
    assert rows["worse", "winogrande"]["verdict"] == "equivalent"


def test_all_formats_have_the_verdicts(tmp_path: Path) -> None:
    """Text, Markdown, LaTeX and HTML have the answer, a symbol with its legend, and the table of differences."""
    run = merged(tmp_path / "r", RIGHT)
    for output_format in ("text", "md", "latex", "html"):
        text = " ".join(make_report([run], output_format=output_format).split())
        for expected in ("Difference from unquantized on the same items", "mean of 2 tasks", "equivalent"):
            assert expected in text, (output_format, expected)
        assert ("$\\downarrow$" if output_format == "latex" else "↓") in text
    lines = list(csv.DictReader(io.StringIO(make_report([run], output_format="csv"))))
    assert {line["verdict"] for line in lines} == {"", "worse", "better", "equivalent"}
    assert "worse: worse on arc_challenge −12.5" in make_report([run])


def test_results_of_an_earlier_version_have_no_comparison(tmp_path: Path) -> None:
    """Without items there are differences, and the note that small ones are not significant."""
    run = merged(tmp_path / "r", RIGHT, with_items=False)
    with open_results(run.results) as file:
        assert not file.item_tables("m--bf16--1").tasks
    document = json.loads(make_report([run], output_format="json"))
    assert rows_of(document)["worse", "arc_challenge"]["delta"] == pytest.approx(-0.125)
    assert {row["verdict"] for row in document["rows"]} == {None}
    assert "With few items (n)" in " ".join(document["notes"])
    assert not document["answers"]


def test_groups_are_compared_over_the_items_of_their_tasks(tmp_path: Path) -> None:
    """Stored shares give a group's score from its tasks' items."""
    tables = ItemTables(
        tasks=[table("a", 100, "acc"), table("b", 300, "acc")],
        groups=[GroupShares(group="g", metric="acc", filter="none", shares={"a": 0.25, "b": 0.75})],
    )
    path = tmp_path / "results.h5"
    report = MergeReport(expected=9, found=9, missing=0, duplicates=0, conflicts=(), set_aside=())
    part = VariantResults(variant="v", index=NO_RESPONSES, scores=[], provenance={}, items=tables)
    write_results(path, run="r", provenance={}, variants=[part], merge=report)
    with open_results(path) as file:
        items = RowItems({"r": file})
        found = items.find("r", "v", "g", ("acc", "none"))
        assert found is not None
        assert found.score == pytest.approx(0.25 * 0.25 + 0.75 * 0.75)
        assert items.find("r", "v", "g", ("acc_norm", "none")) is None
        assert items.find("r", "v", "a", ("acc_norm", "none")) is None
