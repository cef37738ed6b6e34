"""`hpcq report --gate`: exit codes and streams."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.command_line import Hpcq
from tests.unit.report.test_gate import RIGHT, merged


def score(finished: Hpcq, scheme: str) -> None:
    """Replace the results of the run by those of two variants: unquantized, and `scheme` of the other test."""
    run = finished.folder / "runs" / "rehearsal"
    written = merged(finished.folder / scheme, {name: RIGHT[name] for name in ("bf16", scheme)})
    shutil.copy(written.results, run / "results.h5")
    plan = json.loads((run / "plan.json").read_text())
    for unit in plan["units"]:
        if unit["kind"] == "evaluate":
            unit["variant"] = "m--bf16--1" if unit["scheme"] == "bf16" else f"m--{scheme}--1"
            unit["tasks"] = ["arc_challenge", "winogrande"]
    (run / "plan.json").write_text(json.dumps(plan))


@pytest.mark.parametrize(
    ("scheme", "margin", "code", "summary"),
    [
        ("same", 2.0, 0, "PASS (policy.toml): 1 variant loses no more than the margins"),
        ("worse", 2.0, 1, "FAIL (policy.toml): 1 of 2 checks fail"),
        ("same", 0.1, 1, "CANNOT TELL (policy.toml): 2 of 2 checks cannot tell"),
    ],
)
def test_the_exit_code_is_the_verdict(finished: Hpcq, scheme: str, margin: float, code: int, summary: str) -> None:
    """0: PASS; 1: FAIL or CANNOT TELL. The text has the summary, and JSON is one document with it."""
    score(finished, scheme)
    (finished.folder / "policy.toml").write_text(f"margin_points = {margin}\n")
    done = finished("report", "rehearsal", "--gate", "policy.toml")
    assert (done.code, done.err) == (code, "")
    assert summary in " ".join(done.out.split())
    as_json = finished("report", "rehearsal", "--gate", "policy.toml", "--json")
    assert as_json.code == code
    assert as_json.document["gate"]["summary"].startswith(summary)
    assert as_json.err.strip() == as_json.document["gate"]["summary"]


def test_an_invalid_policy_has_its_line(finished: Hpcq) -> None:
    """Exit code 2, nothing on standard output, and the line of the key: unknown, or a name that selects nothing."""
    score(finished, "same")
    for text, problem in (
        ("margin = 2.0\n", "policy.toml:1: margin: unknown key"),
        ('margin_points = 2.0\nvariants = ["gptq"]\n', "policy.toml:2: variants: 'gptq' selects no quantized variant"),
    ):
        (finished.folder / "policy.toml").write_text(text)
        done = finished("report", "rehearsal", "--gate", "policy.toml")
        assert (done.code, done.out) == (2, "")
        assert problem in done.err


def test_an_export_needs_a_folder(finished: Hpcq) -> None:
    """Exit code 2 without --output or with a file; else a folder per variant, and the gate still decides."""
    score(finished, "same")
    done = finished("report", "rehearsal", "--format", "lm-eval")
    assert (done.code, done.out) == (2, "")
    assert "--format lm-eval writes several files: add --output DIR." in done.err
    done = finished("report", "rehearsal", "--format", "lm-eval", "--output", "manifest.toml")
    assert (done.code, done.err.strip()) == (2, "manifest.toml: is a file; name a folder.")
    (finished.folder / "policy.toml").write_text("margin_points = 0.1\n")
    done = finished("report", "rehearsal", "--format", "lm-eval", "--output", "out", "--gate", "policy.toml")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Wrote 2 files in out\nCANNOT TELL (policy.toml): ")
    assert len(list((finished.folder / "out").glob("m--*--1/results_*.json"))) == 2
