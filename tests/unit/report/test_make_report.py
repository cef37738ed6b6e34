"""Reports from merged results and plan documents on disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.errors import UserInputError
from hpcq.manifest import load, resolve
from hpcq.plan.plan_json import plan_document
from hpcq.plan.planner import make_plan
from hpcq.report.make_report import MergedRun, make_report
from hpcq.store import Index, MergeReport, Score, VariantResults, read_results, write_results

STUDY = "arxiv-2409.11055v6"
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
VARIANTS = {f"llama--{scheme}--1": scheme for scheme in ("bf16", "fp8")}
NO_RESPONSES = Index(tables=(), conflicts=(), set_aside=(), segments=(), duplicates=0, ignored=0, inputs="an address")


def merged(
    runs: Path,
    name: str,
    *,
    n: int = 40,
    missing: int = 0,
    notes: Sequence[str] = (),
    compare: Sequence[str] = (),
    scores: bool = True,
    **provenance: str,
) -> MergedRun:
    """Write the merged results of a run with two variants and one task, by default scored, to the folder `runs`."""
    score = Score(task="arc_challenge", metric="acc_norm", filter="none", value=0.6, stderr=0.05, n=n)
    folder = runs / name
    folder.mkdir(parents=True)
    write_results(
        folder / "results.h5",
        run=name,
        provenance={},
        variants=[
            VariantResults(
                variant=variant,
                index=NO_RESPONSES,
                scores=[score] if scores else [],
                provenance={
                    "model": MODEL, "scheme": scheme, "tool": "none" if scheme == "bf16" else "llmcompressor",
                    "backend": "accelerate", "evaluate_seconds": 5.0,
                    "dtype": "bfloat16", "recipe": json.dumps({"weights": scheme}), **provenance,
                },
            )
            for variant, scheme in VARIANTS.items()
        ],
        merge=MergeReport(expected=9, found=9 - missing, missing=missing, duplicates=0, conflicts=(), set_aside=()),
    )  # fmt: skip
    units = [{"variant": variant, "tasks": ["arc_challenge"]} for variant in VARIANTS]
    document = {"units": units, "notes": list(notes), "compare": list(compare)}
    return MergedRun(name=name, results=folder / "results.h5", plan_document=document)


def table_of(report: str) -> list[list[str]]:
    """Return the cells of a Markdown table, heading first."""
    rows = [line for line in report.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]


def test_a_row_is_not_named_after_a_type_that_was_not_used(tmp_path: Path) -> None:
    """Observed: with evaluate.dtype, "bf16" was computed in float32, and no format said so."""
    note = "Computed in float32 (evaluate.dtype): all variants. The name of a scheme is the type of its weights."
    overridden, planned = merged(tmp_path, "overridden", dtype="float32"), merged(tmp_path, "planned")
    assert note in make_report([overridden], output_format="md")
    assert note not in make_report([planned], output_format="md")
    rows = json.loads(make_report([overridden], output_format="json"))["rows"]
    assert {row["dtype"] for row in rows} == {"float32"}


def test_mixed_gpu_classes_are_reported(tmp_path: Path) -> None:
    """Observed: `resume` continued a variant on another class, and no report said so."""
    mixed, single = (merged(tmp_path, name, gpu_class=name) for name in ("a100, h100", "h100"))
    report = json.loads(make_report([mixed], output_format="json"))
    note = "answered on several GPU classes (a100, h100). Kernels and rounding differ between classes."
    assert {f"{scheme}: {note}" for scheme in ("bf16", "fp8")} <= set(report["notes"])
    assert {row["gpu_class"] for row in report["rows"]} == {"a100, h100"}
    assert "several GPU classes" not in make_report([single])


def test_runs_with_the_same_variants_have_separate_lines(tmp_path: Path) -> None:
    """Lines have the name of their run, and cells have their number of items if it differs."""
    report = make_report([merged(tmp_path, "few", n=40), merged(tmp_path, "many", n=400)], output_format="md")
    assert [line[:2] for line in table_of(report)] == [
        ["variant", "arc_challenge §"],
        ["few: bf16", "60.0 ±5.0 n=40"],
        ["few: fp8", "60.0 ±5.0 (0.0) n=40"],
        ["many: bf16", "60.0 ±5.0 n=400"],
        ["many: fp8", "60.0 ±5.0 (0.0) n=400"],
    ]


def test_a_run_given_twice_is_shown_once(tmp_path: Path) -> None:
    """The same results, also through a link, are one run, and its lines have no name of a run."""
    run = merged(tmp_path, "one")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    again = MergedRun(name="one", results=tmp_path / "link" / "results.h5", plan_document=run.plan_document)
    report = make_report([run, run, again], output_format="md")
    assert [line[0] for line in table_of(report)] == ["variant", "bf16", "fp8"]


def test_runs_with_the_same_name_are_named_by_their_folders(tmp_path: Path) -> None:
    """Runs with the same name in two folders have separate lines and rows."""
    report = make_report([merged(tmp_path / "a", "same"), merged(tmp_path / "b", "same")], output_format="json")
    assert [row["run"] for row in json.loads(report)["rows"]] == [
        *[str(tmp_path / "a" / "same")] * 2,
        *[str(tmp_path / "b" / "same")] * 2,
    ]


def test_a_note_that_does_not_apply_to_all_runs_has_the_name_of_its_run(tmp_path: Path) -> None:
    """A note that applies to all runs is shown once, without a name."""
    runs = [merged(tmp_path, "whole", notes=["Shared."]), merged(tmp_path, "part", notes=["Shared."], missing=2)]
    notes = json.loads(make_report(runs, output_format="json"))["notes"]
    assert notes[:2] == [
        "Shared.",
        "part: 2 of 9 responses are missing: the affected tasks have no score.",
    ]


@pytest.mark.parametrize(
    ("recorded", "asked", "source"),
    [((STUDY,), None, STUDY), ((), None, None), ((), "published", STUDY), (("nature",), STUDY, STUDY)],
)
def test_the_option_overrides_the_studies_of_the_manifest(
    tmp_path: Path, recorded: Sequence[str], asked: str | None, source: str | None
) -> None:
    """The study comes from --compare, or else from the plan; without both there are no published scores."""
    report = make_report([merged(tmp_path, "r", compare=recorded)], output_format="json", compare=asked)
    assert [row["published_source"] for row in json.loads(report)["rows"]] == [source, source]


def test_a_plan_without_studies_is_read(tmp_path: Path) -> None:
    """A plan document without the field `compare` has no study."""
    run = merged(tmp_path, "r")
    document = {name: value for name, value in run.plan_document.items() if name != "compare"}
    assert "published" not in make_report([MergedRun(name="r", results=run.results, plan_document=document)])


def test_an_unknown_study_in_a_plan_is_refused(tmp_path: Path) -> None:
    """The message has the run, the key, and the studies in the catalog."""
    with pytest.raises(
        UserInputError, match=rf"r: report\.compare nature: unknown study. Studies in the catalog: {STUDY}"
    ):
        make_report([merged(tmp_path, "r", compare=["nature"])])


def test_the_plan_records_the_studies_of_the_manifest(tmp_path: Path) -> None:
    """`report.compare` of a manifest is `compare` in the plan document."""
    manifest = tmp_path / "mine.toml"
    manifest.write_text(
        f'[run]\nname = "r"\n[[models]]\nid = "{MODEL}"\n[schemes]\nuse = ["bf16"]\n'
        f'[tasks]\nuse = ["arc_challenge"]\n[report]\ncompare = ["{STUDY}"]\n'
    )
    assert plan_document(make_plan(resolve(load(manifest))), (), {})["compare"] == [STUDY]


def test_results_are_read_once(tmp_path: Path) -> None:
    """A report reads the results of each run once: they may be large, and change between two reads."""
    runs = [merged(tmp_path, "a"), merged(tmp_path, "b")]
    calls: list[Any] = []

    def record_call(frame: Any, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code is read_results.__code__:
            calls.append(frame.f_locals["path"])

    sys.setprofile(record_call)
    try:
        make_report(runs)
    finally:
        sys.setprofile(None)
    assert calls == [run.results for run in runs]
