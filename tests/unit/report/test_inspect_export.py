"""Logs for Inspect: members and keys of the archives of inspect_ai 0.3.285, and its reader if it is installed."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcq.report.exports import EXPORTERS
from hpcq.report.make_report import MergedRun
from hpcq.store import MergeReport, Score, write_results
from tests.unit.report.test_fidelity import CHOICES, GOLD, N, draw, variant

PROVENANCE = {
    "model": "org/Some-Model", "scheme": "gptq-w4a16", "tool": "llmcompressor", "backend": "accelerate",
    "evaluate_seconds": 12.5, "dtype": "bfloat16", "backend_versions": '{"lm-eval": "0.4.13"}',
}  # fmt: skip
EVAL_KEYS = {
    "eval_id", "run_id", "created", "task", "task_id", "task_version", "task_attribs", "task_args", "task_args_passed",
    "solver_args_passed", "dataset", "model", "model_generate_config", "model_args", "config", "packages", "metadata",
}  # fmt: skip
HEADER_KEYS = {"version", "status", "eval", "plan", "results", "stats", "invalidated", "tags", "metadata"}
SAMPLE_KEYS = {
    "id", "epoch", "input", "target", "messages", "output", "scores", "metadata", "store", "events", "model_usage",
    "role_usage", "attachments", "events_data",
}  # fmt: skip


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Export a variant with one multiple-choice task."""
    part = dataclasses.replace(
        variant("some-model--gptq--1", draw(1)),
        provenance=PROVENANCE,
        scores=[Score(task="t", metric="acc", filter="none", value=1.0, stderr=0.0, n=N)],
    )
    report = MergeReport(expected=9, found=9, missing=0, duplicates=0, conflicts=(), set_aside=())
    path = tmp_path / "results.h5"
    write_results(path, run="r", provenance={}, variants=[part], merge=report)
    run = MergedRun(name="r", results=path, plan_document={"units": []})
    (written,) = EXPORTERS["inspect"]([run], tmp_path / "exported")
    content = written.read_bytes()
    assert [*EXPORTERS["inspect"]([run], tmp_path / "exported")] == [written]
    assert written.read_bytes() == content
    return written


def documents(path: Path) -> dict[str, Any]:
    """Return the members of an archive."""
    with zipfile.ZipFile(path) as archive:
        return {name: json.loads(archive.read(name)) for name in archive.namelist()}


def test_the_archive_has_the_members_and_keys_of_inspect(log: Path) -> None:
    """No key that Inspect does not know; samples have the target, the best choice, the value and the responses."""
    found = documents(log)
    samples = [f"samples/{number}_epoch_1.json" for number in range(N)]
    assert list(found) == [
        "_journal/start.json", *samples, "_journal/summaries/1.json", "summaries.json", "header.json",
    ]  # fmt: skip
    assert set(found["header.json"]) <= HEADER_KEYS
    assert set(found["header.json"]["eval"]) <= EVAL_KEYS
    assert found["header.json"]["results"]["scores"][0]["metrics"]["mean"]["value"] == 1.0
    choices = draw(1)
    for number, name in enumerate(samples):
        sample = found[name]
        assert set(sample) <= SAMPLE_KEYS
        assert sample["target"] == str(GOLD[number])
        assert sample["scores"] == {"acc": {"value": 1.0}}
        assert sample["output"]["completion"] == str(np.nanargmax(choices[number]))
        assert len(sample["metadata"]["responses"]) == CHOICES - int(np.isnan(choices[number]).sum())
    assert len(found["summaries.json"]) == N


def test_inspect_reads_it_if_it_is_installed(log: Path) -> None:
    """inspect_ai is in none of our environments: with `pip install inspect-ai` its reader finds the same."""
    if importlib.util.find_spec("inspect_ai") is None:
        return
    read = importlib.import_module("inspect_ai.log").read_eval_log(str(log))
    assert (read.status, read.eval.model, len(read.samples)) == ("success", "hf/org/Some-Model--gptq-w4a16", N)
    assert {sample.scores["acc"].value for sample in read.samples} == {1.0}
    assert read.results.scores[0].metrics["mean"].value == 1.0
