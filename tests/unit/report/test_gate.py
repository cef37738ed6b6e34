"""Gates: policies, verdicts with their error rates, and what the command line prints."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcq.core.errors import KeyedInputError, ManifestError
from hpcq.manifest.gate_policy import PolicyFile
from hpcq.report.formats import FORMATTERS, Report
from hpcq.report.gate import GateCheck, GatePolicy, GateResult, GateVerdict, judge_checks
from hpcq.report.make_report import MergedRun, build_report
from hpcq.report.statistics.comparison import compare
from hpcq.report.statistics.item_scores import one_stratum
from tests.unit.report.test_comparisons import merged as merged_run

RIGHT = {
    "bf16": {"arc_challenge": 200, "winogrande": 200},
    "same": {"arc_challenge": 200, "winogrande": 200},
    "worse": {"arc_challenge": 100, "winogrande": 200},
}


def merged(folder: Path, right: Mapping[str, Mapping[str, int]], **options: Any) -> MergedRun:
    """Return a run whose plan has two tasks."""
    units = [{"variant": f"m--{scheme}--1", "tasks": ["arc_challenge", "winogrande"]} for scheme in right]
    return merged_run(folder, right, units=units, **options)


def gate(run: MergedRun, **policy: Any) -> GateResult:
    """Return what a gate says about a run."""
    found = build_report([run], gate=GatePolicy(name="p.toml", **policy)).gate
    assert found is not None
    return found


def verdicts(result: GateResult) -> dict[tuple[str, str], str]:
    """Return the verdicts by variant and subject."""
    return {(check.name, check.subject): str(check.verdict) for check in result.checks}


def test_losses_are_compared_with_the_margins(tmp_path: Path) -> None:
    """A loss of 25 points fails a margin of 2; no change of 400 items passes it; the baseline is not checked."""
    result = gate(merged(tmp_path / "r", RIGHT), margin_points=2.0)
    assert verdicts(result) == {
        ("same", "arc_challenge"): "PASS",
        ("same", "winogrande"): "PASS",
        ("worse", "arc_challenge"): "FAIL",
        ("worse", "winogrande"): "PASS",
    }
    assert result.verdict is GateVerdict.FAIL
    assert result.summary == ("FAIL (p.toml): 1 of 4 checks fail; worse loses 25.0 points on arc_challenge, margin 2.")


def test_variants_and_tasks_are_selected(tmp_path: Path) -> None:
    """Patterns select variants by scheme, id or name; a task's margin replaces the general one."""
    run = merged(tmp_path / "r", RIGHT)
    assert gate(run, margin_points=2.0, variants=("sa*",)).verdict is GateVerdict.PASS
    assert gate(run, margin_points=2.0, variants=("m--same--1",)).verdict is GateVerdict.PASS
    assert gate(run, margin_points=2.0, tasks={"arc_challenge": 40.0}).verdict is GateVerdict.PASS
    assert list(verdicts(gate(run, tasks={"winogrande": 2.0}))) == [("same", "winogrande"), ("worse", "winogrande")]
    for pattern in ("gptq*", "bf16"):
        with pytest.raises(KeyedInputError, match=re.escape(f"'{pattern}' selects no quantized variant")):
            gate(run, margin_points=2.0, variants=(pattern,))


def test_too_few_items_cannot_tell(tmp_path: Path) -> None:
    """Without power for the margin there is no PASS, unless the policy does not require it; a FAIL needs none."""
    run = merged(tmp_path / "r", RIGHT)
    result = gate(run, margin_points=0.7)
    assert verdicts(result)["same", "winogrande"] == "CANNOT TELL"
    assert verdicts(result)["worse", "arc_challenge"] == "FAIL"
    check = next(check for check in result.checks if check.name == "same")
    assert check.reason.startswith("the items show differences from 1.0 points; about ")
    assert gate(run, margin_points=0.7, require_power=False, variants=("same",)).verdict is GateVerdict.PASS
    assert gate(run, margin_points=0.1, require_power=False, variants=("same",)).verdict is GateVerdict.CANNOT_TELL


def test_what_was_not_measured_cannot_tell(tmp_path: Path) -> None:
    """A task that the run does not have, a missing score, and results without items are no PASS; each has a reason."""
    run = merged(tmp_path / "r", RIGHT)
    result = gate(run, margin_points=2.0, tasks={"gsm8k": 2.0}, variants=("same",))
    assert verdicts(result)["same", "gsm8k"] == "CANNOT TELL"
    assert result.summary.endswith("same on gsm8k: gsm8k is not in the run.")
    assert result.verdict is GateVerdict.CANNOT_TELL
    partly = {**RIGHT, "same": {"arc_challenge": 200}}
    result = gate(merged(tmp_path / "s", partly), margin_points=2.0, variants=("same",))
    assert "winogrande has no score" in result.summary
    old = merged(tmp_path / "t", RIGHT, with_items=False)
    assert "arc_challenge is not compared" in gate(old, margin_points=2.0).summary


def test_means_are_checked(tmp_path: Path) -> None:
    """The mean of all tasks has a margin of its own; a suite whose tasks are missing cannot tell."""
    run = merged(tmp_path / "r", RIGHT)
    result = gate(run, mean_margin_points=2.0)
    assert verdicts(result) == {("same", "mean of 2 tasks"): "PASS", ("worse", "mean of 2 tasks"): "FAIL"}
    assert [check.delta for check in result.checks] == pytest.approx([0.0, -0.125])
    suite = gate(run, suites={"openllm-v1": 2.0}, variants=("same",)).checks[0]
    assert (suite.verdict, suite.subject) == (GateVerdict.CANNOT_TELL, f"mean of {len(suite.tasks)} tasks (openllm-v1)")
    assert "mmlu is not in the run" in suite.reason


def test_every_format_has_the_gate(tmp_path: Path) -> None:
    """Tables have the summary and the checks; JSON has them as one object of the one document."""
    report = build_report([merged(tmp_path / "r", RIGHT)], gate=GatePolicy(name="p.toml", margin_points=2.0))
    for output_format in ("text", "md", "html", "latex"):
        text = " ".join(FORMATTERS[output_format](report).split())
        assert "FAIL (p.toml): 1 of 4 checks fail" in text, output_format
    document = json.loads(FORMATTERS["json"](report))["gate"]
    assert (document["verdict"], len(document["checks"])) == ("FAIL", 4)
    assert document["checks"][0]["margin"] == 0.02
    assert "gate" not in json.loads(FORMATTERS["json"](without_gate(report)))


def without_gate(report: Report) -> Report:
    """Return the report without its gate."""
    return Report(runs=report.runs, rows=report.rows, table=report.table)


@pytest.mark.parametrize(("loss", "wrong"), [(0.05, GateVerdict.PASS), (0.05, GateVerdict.FAIL)])
def test_a_wrong_verdict_is_rare(loss: float, wrong: GateVerdict) -> None:
    """If the true loss is the margin, a check passes in at most 5 % of the runs, and fails in at most 5 %."""
    generator, draws, found = np.random.default_rng(7), 1000, 0
    for _ in range(draws):
        kinds = generator.choice(3, size=600, p=[0.05, 0.05 + loss, 0.9 - loss])
        baseline = np.where(kinds == 0, 0.0, np.where(kinds == 1, 1.0, generator.integers(0, 2, 600)))
        variant = np.where(kinds == 0, 1.0, np.where(kinds == 1, 0.0, baseline))
        found += verdict_of(baseline, variant, loss) is wrong
    assert found / draws < 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5


def verdict_of(baseline: np.ndarray[Any, Any], variant: np.ndarray[Any, Any], margin: float) -> GateVerdict:
    """Return the verdict on these items, without a required power."""
    keys = np.array([f"{number:05d}" for number in range(len(baseline))])
    comparison = compare(one_stratum(keys, variant), one_stratum(keys, baseline))
    assert comparison is not None
    check = GateCheck(run="r", variant="v", name="v", subject="t", tasks=("t",), margin=margin).measured(
        difference=comparison.difference,
        error=comparison.error,
        interval=comparison.equivalence_interval,
        n=comparison.n,
    )
    return next(judge_checks([check], require_power=False)).verdict


POLICY = """# What may be lost
variants = ["gptq-*"]
margin_points = 1.0
[tasks]
gsm8k = 2.0
[suites]
openllm-v1 = 0.5
"""


def test_a_policy_is_read(tmp_path: Path) -> None:
    """Keys that are not given have their defaults."""
    (tmp_path / "p.toml").write_text(POLICY)
    policy = PolicyFile(tmp_path / "p.toml").policy
    assert policy == GatePolicy(
        name=str(tmp_path / "p.toml"), variants=("gptq-*",), margin_points=1.0, tasks={"gsm8k": 2.0},
        suites={"openllm-v1": 0.5},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("margin_points = 1.0", "margin = 1.0", "p.toml:3: margin: unknown key; allowed here are margin_points"),
        ("margin_points = 1.0", "margin_points = 0", "p.toml:3: margin_points: must be above 0, not 0."),
        ("margin_points = 1.0", "margin_points = 250", "must be 100 percentage points or less, not 250."),
        ("gsm8k = 2.0", "gsm8 = 2.0", "p.toml:5: tasks.gsm8: unknown task 'gsm8'; known are"),
        ("openllm-v1 = 0.5", "openllm = 0.5", "p.toml:7: suites.openllm: unknown suite 'openllm'; known are"),
        ('["gptq-*"]', '"gptq-*"', "p.toml:2: variants: must be a list, not 'gptq-*'."),
        (POLICY, "", "p.toml: margin_points: is missing: set the largest loss that passes, such as 1.0."),
        (POLICY, "variants = [", "p.toml:1: is not valid TOML"),
    ],
)
def test_an_invalid_policy_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    """The message has file, line, key and fix."""
    (tmp_path / "p.toml").write_text(POLICY.replace(old, new))
    with pytest.raises(ManifestError) as caught:
        PolicyFile(tmp_path / "p.toml")
    assert message in str(caught.value)
