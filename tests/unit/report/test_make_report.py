"""Reports of runs as they lie on disk: merged results and the documents of their plans."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.errors import UserInputError
from hpcq.manifest import load, resolve
from hpcq.plan.plan import make_plan
from hpcq.plan.plan_json import plan_document
from hpcq.report.report import MergedRun, make_report
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
) -> MergedRun:
    """A run of two variants on one task, merged under the folder `runs`."""
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
                scores=[Score(task="arc_challenge", metric="acc_norm", filter="none", value=0.6, stderr=0.05, n=n)],
                provenance={
                    "model": MODEL, "scheme": scheme, "tool": "none" if scheme == "bf16" else "llmcompressor",
                    "backend": "accelerate", "evaluate_seconds": 5.0,
                },
            )
            for variant, scheme in VARIANTS.items()
        ],
        merge=MergeReport(expected=9, found=9 - missing, missing=missing, duplicates=0, conflicts=(), set_aside=()),
    )  # fmt: skip
    units = [{"variant": variant, "tasks": ["arc_challenge"]} for variant in VARIANTS]
    document = {"units": units, "notes": list(notes), "compare": list(compare)}
    return MergedRun(name=name, results=folder / "results.h5", document=document)


def table_of(report: str) -> list[list[str]]:
    """The cells of a Markdown table, heading first."""
    rows = [line for line in report.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]


def test_runs_of_the_same_variants_have_a_line_each(tmp_path: Path) -> None:
    """No run's scores hide another's: lines name their run, and cells their items where these differ."""
    report = make_report([merged(tmp_path, "few", n=40), merged(tmp_path, "many", n=400)], output_format="md")
    assert [line[:2] for line in table_of(report)] == [
        ["variant", "arc_challenge"],
        ["few: bf16", "60.0 ±5.0 n=40"],
        ["few: fp8", "60.0 ±5.0 (0.0) n=40"],
        ["many: bf16", "60.0 ±5.0 n=400"],
        ["many: fp8", "60.0 ±5.0 (0.0) n=400"],
    ]


def test_a_run_named_twice_is_shown_once(tmp_path: Path) -> None:
    """The same results, also by way of a link, are one run, whose lines need no run's name."""
    run = merged(tmp_path, "one")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    again = MergedRun(name="one", results=tmp_path / "link" / "results.h5", document=run.document)
    report = make_report([run, run, again], output_format="md")
    assert [line[0] for line in table_of(report)] == ["variant", "bf16", "fp8"]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    """Two folders may hold runs of the same name: each has its lines and its rows."""
    report = make_report([merged(tmp_path / "a", "same"), merged(tmp_path / "b", "same")], output_format="json")
    assert [row["run"] for row in json.loads(report)["rows"]] == [
        *[str(tmp_path / "a" / "same")] * 2,
        *[str(tmp_path / "b" / "same")] * 2,
    ]


def test_a_note_that_not_all_runs_share_names_its_run(tmp_path: Path) -> None:
    """What is missing is missing from a run; what is true of all is said once and of none."""
    runs = [merged(tmp_path, "whole", notes=["Shared."]), merged(tmp_path, "part", notes=["Shared."], missing=2)]
    notes = json.loads(make_report(runs, output_format="json"))["notes"]
    assert notes[:2] == [
        "Shared.",
        "part: 2 of 9 responses are missing: tasks without them have no score.",
    ]


@pytest.mark.parametrize(
    ("recorded", "asked", "source"),
    [((STUDY,), None, STUDY), ((), None, None), ((), "published", STUDY), (("nature",), STUDY, STUDY)],
)
def test_the_manifests_studies_are_shown_unless_others_are_asked_for(
    tmp_path: Path, recorded: Sequence[str], asked: str | None, source: str | None
) -> None:
    """Published scores come from --compare, without it from the plan, and from nowhere where neither names a study."""
    report = make_report([merged(tmp_path, "r", compare=recorded)], output_format="json", compare=asked)
    assert [row["published_source"] for row in json.loads(report)["rows"]] == [source, source]


def test_a_plan_from_before_studies_were_recorded_is_read(tmp_path: Path) -> None:
    """A document without `compare` names no study."""
    run = merged(tmp_path, "r")
    document = {name: value for name, value in run.document.items() if name != "compare"}
    assert "published" not in make_report([MergedRun(name="r", results=run.results, document=document)])


def test_an_unknown_study_in_a_plan_is_refused(tmp_path: Path) -> None:
    """The message says whose manifest names it, and which studies there are."""
    with pytest.raises(UserInputError, match=rf"r: report\.compare nature: no such study; the catalog has {STUDY}"):
        make_report([merged(tmp_path, "r", compare=["nature"])])


def test_the_plan_records_the_studies_of_the_manifest(tmp_path: Path) -> None:
    """`report.compare` of a manifest is `compare` in the plan's document."""
    manifest = tmp_path / "mine.toml"
    manifest.write_text(
        f'[run]\nname = "r"\n[[models]]\nid = "{MODEL}"\n[schemes]\nuse = ["bf16"]\n'
        f'[tasks]\nuse = ["arc_challenge"]\n[report]\ncompare = ["{STUDY}"]\n'
    )
    assert plan_document(make_plan(resolve(load(manifest))), (), {})["compare"] == [STUDY]


def test_results_are_read_once(tmp_path: Path) -> None:
    """A report opens each run's results one time: they may be large, and change between two readings."""
    runs = [merged(tmp_path, "a"), merged(tmp_path, "b")]
    calls: list[Any] = []

    def note(frame: Any, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code is read_results.__code__:
            calls.append(frame.f_locals["path"])

    sys.setprofile(note)
    try:
        make_report(runs)
    finally:
        sys.setprofile(None)
    assert calls == [run.results for run in runs]
