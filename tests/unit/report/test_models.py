"""Several models in one report: each is compared with its own baseline, and none looks like another."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest

from hpcq.report.formats import FORMATTERS
from hpcq.report.make_report import MergedRun, make_report
from hpcq.report.model_labels import ModelIdentity, model_labels
from hpcq.report.published import add_published_scores, find_studies
from hpcq.report.rows import Row, make_rows
from hpcq.store import Index, MergeReport, Score, VariantResults, read_results, write_results

NO_RESPONSES = Index(tables=(), conflicts=(), set_aside=(), segments=(), duplicates=0, ignored=0, inputs="an address")
OLD, NEW = "1" * 40, "2" * 40

OLD_REVISION = ModelIdentity(id="org/Model-8B", revision=OLD)
NEW_REVISION = ModelIdentity(id="org/Model-8B", revision=NEW)
OTHER_ORGANIZATION = ModelIdentity(id="other/Model-8B", revision=OLD)
SCORES = {OLD_REVISION: (0.6, 0.5), NEW_REVISION: (0.9, 0.7), OTHER_ORGANIZATION: (0.3, 0.2)}
"""Scores of the unquantized model and of its FP8 variant."""


def merged(folder: Path, name: str, *models: ModelIdentity) -> MergedRun:
    """Write the merged results of a run of these models, each in bf16 and in FP8."""
    path = folder / name / "results.h5"
    path.parent.mkdir(parents=True)
    variants = [
        VariantResults(
            variant=f"model-8b--{scheme}--{model.id[:3]}{model.revision[:1]}",
            index=NO_RESPONSES,
            scores=[Score(task="arc_challenge", metric="acc_norm", filter="none", value=value, stderr=None, n=1172)],
            provenance={
                "model": model.id, "model_revision": model.revision, "model_digest": model.digest,
                "scheme": scheme, "tool": tool, "backend": "vllm", "evaluate_seconds": 5.0,
            },
        )
        for model in models
        for (scheme, tool), value in zip((("bf16", "none"), ("fp8", "llmcompressor")), SCORES[model], strict=True)
    ]  # fmt: skip
    merge = MergeReport(expected=9, found=9, missing=0, duplicates=0, conflicts=(), set_aside=())
    write_results(path, run=name, provenance={}, variants=variants, merge=merge)
    units = [{"variant": one.variant, "tasks": ["arc_challenge"]} for one in variants]
    return MergedRun(name=name, results=path, plan_document={"units": units})


def first_columns(report: str) -> dict[str, str]:
    """Return the score of each line of a Markdown table by its name."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines() if line[:2] == "| "]
    return {line[0].replace("\\", ""): line[1] for line in lines[1:]}


@pytest.mark.parametrize("other", [NEW_REVISION, OTHER_ORGANIZATION])
@pytest.mark.parametrize("in_one_run", [True, False])
def test_each_model_is_compared_with_its_own_baseline(
    tmp_path: Path, other: ModelIdentity, *, in_one_run: bool
) -> None:
    """Two revisions of a model, and two organizations' models of the same name, in one run and in two."""
    runs = [merged(tmp_path, "both", OLD_REVISION, other)]
    if not in_one_run:
        runs = [merged(tmp_path, "first", OLD_REVISION), merged(tmp_path, "second", other)]
    rows = json.loads(make_report(runs, output_format="json"))["rows"]
    found = {
        (row["model"], row["model_revision"]): (row["baseline_value"], row["delta"])
        for row in rows
        if row["scheme"] == "fp8"
    }
    assert found == {
        (model.id, model.revision): (SCORES[model][0], pytest.approx(SCORES[model][1] - SCORES[model][0]))
        for model in (OLD_REVISION, other)
    }


def test_a_model_without_baseline_does_not_get_that_of_another_revision(tmp_path: Path) -> None:
    """If only one revision was evaluated unquantized, the other has no difference."""
    run = merged(tmp_path, "r", OLD_REVISION, NEW_REVISION)
    units = run.plan_document["units"]
    removed = next(unit["variant"] for unit in units if unit["variant"].endswith("bf16--org2"))
    results = read_results(run.results)
    kept = tuple(variant for variant in results.variants if variant.variant != removed)
    rows = make_rows(dataclasses.replace(results, variants=kept))
    assert {row.model_revision: row.delta is None for row in rows if row.scheme == "fp8"} == {OLD: False, NEW: True}


@pytest.mark.parametrize("in_one_run", [True, False])
def test_models_are_distinguishable_in_every_format(tmp_path: Path, *, in_one_run: bool) -> None:
    """Tables have the shortest labels that differ; CSV and JSON have id, revision and digest.

    Observed: models of two organizations looked alike.
    """
    models = (OLD_REVISION, NEW_REVISION, OTHER_ORGANIZATION)
    runs = [merged(tmp_path, "all", *models)]
    if not in_one_run:
        runs = [merged(tmp_path, f"r{at}", model) for at, model in enumerate(models)]
    labels = ["org/Model-8B@1111111", "org/Model-8B@2222222", "other/Model-8B@1111111"]
    prefixes = ("",) * 3 if in_one_run else ("r0: ", "r1: ", "r2: ")
    expected = {
        f"{prefix}{label} {scheme}"
        for prefix, label in zip(prefixes, labels, strict=True)
        for scheme in ("bf16", "fp8")
    }
    assert set(first_columns(make_report(runs, output_format="md"))) == expected
    for output_format in FORMATTERS:
        text = make_report(runs, output_format=output_format)
        if output_format == "csv":
            rows = list(csv.DictReader(io.StringIO(text)))
        elif output_format == "json":
            rows = json.loads(text)["rows"]
        else:
            assert all(label in text for label in labels), output_format
            continue
        assert len({(row["model"], row["model_revision"], row["model_digest"], row["scheme"]) for row in rows}) == 6


@pytest.mark.parametrize(
    ("models", "labels"),
    [
        ([("org/a", "", ""), ("org/b", "", "")], ["a", "b"]),
        ([("org/a", "", ""), ("other/a", "", ""), ("org/b", "", "")], ["org/a", "other/a", "b"]),
        ([("org/a", "main", ""), ("org/a", "v2", "")], ["a@main", "a@v2"]),
        ([("organization/a", "x", ""), ("another/a", "y", "")], ["a@x", "a@y"]),
        ([("org/a", "", "c" * 64), ("org/a", "", "d" * 64)], ["a#ccccccc", "a#ddddddd"]),
        ([("org/a", "", ""), ("org/a", "", "d" * 64)], ["a", "a#ddddddd"]),
        ([("o/a", "e" * 39 + "1", ""), ("o/a", "e" * 39 + "2", "")], [f"a@{'e' * 39}1", f"a@{'e' * 39}2"]),
        ([("/data/x/a", "", ""), ("/data/y/a/", "", "")], ["x/a", "y/a"]),
        ([("/one/x/a", "", ""), ("/two/x/a", "", "")], ["/one/x/a", "/two/x/a"]),
        ([("org/a", "", ""), ("org/A", "", "")], ["org/a", "org/A"]),
        (
            [("p/a", "1", ""), ("p/a", "2", ""), ("q/a", "1", "")],
            ["p/a@1", "p/a@2", "q/a@1"],
        ),
    ],
)
def test_labels_are_the_shortest_that_differ(models: list[tuple[str, str, str]], labels: list[str]) -> None:
    """Organization, revision or digest are added only where models would look alike."""
    identities = [ModelIdentity(id=name, revision=revision, digest=digest) for name, revision, digest in models]
    assert list(model_labels(identities).values()) == labels


def test_another_organizations_model_has_no_published_score() -> None:
    """A study's score for Llama-3.1-8B-Instruct is not that of a model of the same name on another account."""
    row = Row(
        run="r", variant="v", model="meta-llama/Llama-3.1-8B-Instruct", scheme="fp8", tool="llmcompressor",
        backend="vllm", task="arc_challenge", metric="acc_norm", filter="none", value=0.5, stderr=None, n=1172,
        is_main=True,
    )  # fmt: skip
    foreign = dataclasses.replace(row, model="another-org/Llama-3.1-8B-Instruct")
    rows, _ = add_published_scores([row, foreign], find_studies("published", place="--compare"))
    assert [one.published_value for one in rows] == [61.52, None]
