"""Baselines across runs: a difference where model and requests are the same, else the reason; a row per variant."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hpcq.report.failed_variants import VariantFailure
from hpcq.report.make_report import MergedRun, make_report
from hpcq.store import Index, MergeReport, Score, VariantResults, write_results

NO_RESPONSES = Index(tables=(), conflicts=(), set_aside=(), segments=(), duplicates=0, ignored=0, inputs="an address")
ARC = {"name": "arc_challenge", "num_fewshot": None, "limit": 40}
MODEL = {"model": "org/m", "model_revision": "a" * 40}
SCORES = {"bf16": 0.75, "fp8": 0.5, "w4": 0.25}


def merged(
    folder: Path,
    name: str,
    schemes: Sequence[str],
    *,
    tasks: Sequence[dict[str, Any]] = (ARC,),
    planned: Sequence[str] | None = None,
    failures: dict[str, VariantFailure] | None = None,
    **changes: Any,
) -> MergedRun:
    """Write the merged results of a run with these schemes."""
    (folder / name).mkdir()
    provenance = {
        **MODEL, "backend": "accelerate", "evaluate_seconds": 1.0, "tasks": json.dumps(tasks),
        "backend_versions": json.dumps({"lm-eval": "0.4.13"}), "options": "{}", **changes,
    }  # fmt: skip
    write_results(
        folder / name / "results.h5",
        run=name,
        provenance={},
        variants=[
            VariantResults(
                variant=f"m--{scheme}--1",
                index=NO_RESPONSES,
                scores=[
                    Score(task=task["name"], metric="acc_norm", filter="none", value=SCORES[scheme], stderr=0.1, n=40)
                    for task in tasks
                ],
                provenance={**provenance, "scheme": scheme, "tool": "none" if scheme == "bf16" else "llmcompressor"},
            )
            for scheme in schemes
        ],
        merge=MergeReport(expected=9, found=9, missing=0, duplicates=0, conflicts=(), set_aside=()),
    )
    units = [
        {
            "id": f"evaluate.m--{scheme}--1", "variant": f"m--{scheme}--1", "scheme": scheme, "backend": "accelerate",
            "tasks": [task["name"] for task in tasks], "tool": "llmcompressor", **MODEL,
        }
        for scheme in planned or schemes
    ]  # fmt: skip
    return MergedRun(
        name=name, results=folder / name / "results.h5", plan_document={"units": units}, failures=failures or {}
    )


def document(*runs: MergedRun) -> dict[str, Any]:
    """Return the JSON report of the runs."""
    found: dict[str, Any] = json.loads(make_report(runs, output_format="json"))
    return found


def test_the_baseline_is_found_in_another_run(tmp_path: Path) -> None:
    """`report A B` had no difference for B, so that one more scheme meant answering all requests again."""
    report = document(merged(tmp_path, "a", ["bf16", "w4"]), merged(tmp_path, "b", ["fp8"]))
    rows = {(row["run"], row["scheme"]): row for row in report["rows"]}
    other = rows["b", "fp8"]
    assert (other["delta"], other["baseline_value"], other["baseline_run"]) == (-0.25, 0.75, "a")
    assert (rows["a", "w4"]["delta"], rows["a", "w4"]["baseline_run"]) == (-0.5, None)
    assert "b: differences from the unquantized variant in a: same model, same requests." in report["notes"]


def test_a_local_model_is_recognized_by_its_digest(tmp_path: Path) -> None:
    """The same files under another name are the same model."""
    runs = [
        merged(tmp_path, "a", ["bf16"], model="first", model_revision="", model_digest="d" * 64),
        merged(tmp_path, "b", ["fp8"], model="second", model_revision="", model_digest="d" * 64),
    ]
    assert document(*runs)["rows"][1]["delta"] == -0.25


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tasks": [{**ARC, "limit": 50}]}, "limit of arc_challenge is 40 in a and 50 in b"),
        ({"tasks": [{**ARC, "num_fewshot": 5}]}, "num_fewshot of arc_challenge is None in a and 5 in b"),
        ({"backend_versions": '{"lm-eval": "0.5"}'}, "a used lm-eval 0.4.13, b lm-eval 0.5"),
        ({"options": '{"max_length": 512}'}, "evaluate.max_length is None in a and 512 in b"),
        ({"options": '{"add_eos": false}'}, "evaluate.add_eos is not the same in a and in b"),
        ({"model_revision": "b" * 40}, "org/m in a is revision aaaaaaaaaaaa, not revision bbbbbbbbbbbb"),
        ({"model": "org/other"}, "there is no unquantized variant of org/other"),
        ({"tasks": [{**ARC, "name": "hellaswag"}]}, "a has no unquantized score of hellaswag"),
    ],
)
def test_without_the_same_requests_the_row_says_why(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    """A difference between scores of other items, prompts or models would be a wrong number."""
    report = document(merged(tmp_path, "a", ["bf16"]), merged(tmp_path, "b", ["fp8"], **changes))
    row = report["rows"][-1]
    assert (row["delta"], row["baseline_value"], row["baseline_problem"]) == (None, None, reason)
    assert f"b: no difference for fp8, because {reason}." in report["notes"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tasks": [{**ARC, "limit": 50}]}, "limit of arc_challenge is 40 in a and 50 in b"),
        ({"tasks": [{**ARC, "num_fewshot": 5}]}, "num_fewshot of arc_challenge is None in a and 5 in b"),
        ({"backend_versions": '{"lm-eval": "0.5"}'}, "a used lm-eval 0.4.13, b lm-eval 0.5"),
        ({}, None),
    ],
)
def test_scores_of_other_requests_in_one_column_are_marked(
    tmp_path: Path, changes: dict[str, Any], reason: str | None
) -> None:
    """Both runs have their own baseline, so the differences are right; scores of the two runs are not comparable."""
    runs = merged(tmp_path, "a", ["bf16", "w4"]), merged(tmp_path, "b", ["bf16", "fp8"], **changes)
    report = document(*runs)
    assert [row["not_comparable"] for row in report["rows"]] == [None, None, reason, reason]
    assert [row["delta"] for row in report["rows"]] == [None, -0.5, None, -0.25]
    note = f"\N{SECTION SIGN} arc_challenge: do not compare its scores across runs, because {reason}."
    for form in ("text", "md", "html"):
        text = " ".join(make_report(runs, output_format=form).replace("\\", "").split())
        assert (note in text) == (reason is not None), form
        assert ("arc_challenge \N{SECTION SIGN}" in text) == (reason is not None), form
    assert (r"arc\_challenge \S{}" in make_report(runs, output_format="latex")) == (reason is not None)
    assert (str(reason) in make_report(runs, output_format="csv")) == (reason is not None)


def test_variants_that_were_not_merged_keep_their_row(tmp_path: Path) -> None:
    """Cancelled, pending and unmerged variants of the plan have a line with their state, and a note with the reason."""
    failures = {
        "m--w4--1": VariantFailure(unit="evaluate.m--w4--1", state="cancelled", reason="cancelled before it started"),
        "m--fp4--1": VariantFailure(unit="evaluate.m--fp4--1", state="pending", reason="Resources"),
    }
    run = merged(tmp_path, "r", ["bf16"], planned=["bf16", "w4", "fp4", "w8"], failures=failures)
    lines = [line for line in make_report([run], output_format="md").splitlines() if line.startswith(("| ", "- "))]
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in lines if line.startswith("| ")]
    assert cells[1:] == [["bf16", "75.0 ±10.0"], ["w4", "cancelled"], ["fp4", "pending"], ["w8", "not merged"]]
    assert "- w4: evaluate.m--w4--1 cancelled: cancelled before it started." in lines
    assert "- fp4: evaluate.m--fp4--1 pending: Resources." in lines
    assert any("run `hpcq merge r`" in line.replace("\\", "") for line in lines)
