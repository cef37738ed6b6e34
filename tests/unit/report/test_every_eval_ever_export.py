"""Records of Every Eval Ever: their place, their content, and the schema of the package if it is installed."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import uuid
from pathlib import Path

import pytest

from hpcq.report.exports import EXPORTERS
from hpcq.report.make_report import MergedRun
from hpcq.store import MergeReport, Score, write_results
from tests.unit.report.test_fidelity import N, draw, variant
from tests.unit.report.test_inspect_export import PROVENANCE

TASKS = '[{"name": "t", "num_fewshot": 5, "data_revisions": [["org/data", "0123abcd"]]}, {"name": "wikitext"}]'


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Export a quantized variant with a share and a perplexity."""
    part = dataclasses.replace(
        variant("some-model--gptq--1", draw(1)),
        provenance={**PROVENANCE, "tasks": TASKS, "main_metrics": '{"wikitext": {"lower_is_better": true}}'},
        scores=[
            Score(task="t", metric="acc", filter="none", value=0.5, stderr=0.1, n=N),
            Score(task="wikitext", metric="word_perplexity", filter="none", value=21.5, stderr=None, n=62),
        ],
    )
    report = MergeReport(expected=9, found=9, missing=0, duplicates=0, conflicts=(), set_aside=())
    write_results(tmp_path / "results.h5", run="r", provenance={}, variants=[part], merge=report)
    run = MergedRun(name="r", results=tmp_path / "results.h5", plan_document={"units": []})
    (written,) = EXPORTERS["eee"]([run], tmp_path / "exported")
    assert [path for path in (tmp_path / "exported").rglob("*") if path.is_file()] == [written]
    assert [*EXPORTERS["eee"]([run], tmp_path / "exported")] == [written]
    return written


def test_a_record_has_scores_model_and_sources(record: Path) -> None:
    """At `data/<run>/<organization>/<model>`, which the id of the model repeats."""
    assert record.parts[-5:-1] == ("data", "r", "org", "Some-Model-gptq-w4a16")
    assert uuid.UUID(record.stem).version == 4
    document = json.loads(record.read_text())
    assert document["model_info"]["id"] == "org/Some-Model-gptq-w4a16"
    assert document["model_info"]["additional_details"]["base_model"] == "org/Some-Model"
    share, perplexity = document["evaluation_results"]
    assert share["score_details"] == {
        "score": 0.5,
        "uncertainty": {"standard_error": {"value": 0.1}, "num_samples": N},
    }
    assert (share["metric_config"]["min_score"], share["metric_config"]["max_score"]) == (0.0, 1.0)
    assert share["source_data"]["hf_repo"] == "org/data"
    assert share["source_data"]["additional_details"]["revision"] == "0123abcd"
    assert perplexity["metric_config"]["lower_is_better"] is True
    assert perplexity["metric_config"]["max_score"] == "Infinity"
    assert perplexity["source_data"]["source_type"] == "other"


def test_the_package_accepts_the_record(record: Path) -> None:
    """Its models forbid unknown keys and wrong types."""
    if importlib.util.find_spec("every_eval_ever") is None:
        pytest.skip("every-eval-ever is not installed: it needs Python 3.12. The record's content is tested above.")
    types = importlib.import_module("every_eval_ever.eval_types")
    types.EvaluationLog.model_validate(json.loads(record.read_text()))
