"""Provenance, plan and timeline."""

from __future__ import annotations

import dataclasses
import html

import pytest

from hpcq.core.attempts import AttemptRecord
from hpcq.core.failures import Failure
from hpcq.core.outcomes import Outcome
from hpcq.report.page import plan_section as plan_module
from hpcq.report.page import timeline_section as timeline_module
from hpcq.report.page.content import PageContent
from hpcq.report.page.evidence import Evidence, RunEvidence
from hpcq.report.page.plan_section import plan_section
from hpcq.report.page.provenance_section import provenance_section, split_attributes
from hpcq.report.page.timeline_section import End, end_of, timeline_section


def test_variants_are_in_the_order_of_the_scores(content: PageContent) -> None:
    """The unquantized variant comes first, although the file has its variants in another order."""
    section = provenance_section(content)
    assert section
    head = section.content.source.split("attribute</th>")[1]
    names = [name for (_, variant), name in content.names.items() if "w3a16" not in variant]
    assert sorted(names, key=head.index) == names


def test_common_attributes_are_shown_once() -> None:
    """An attribute with one value is common; one that differs, or that a variant does not have, has all values."""
    variants = {"a": {"dtype": "bf16", "seed": 1, "x": 1}, "b": {"dtype": "f16", "seed": 1}}
    common, different = split_attributes(variants)
    assert common == {"seed": 1}
    assert different == {"dtype": {"a": "bf16", "b": "f16"}, "x": {"a": 1, "b": None}}


def test_provenance_names_what_was_measured(content: PageContent) -> None:
    """Versions, data type, kernels, backend, prefix sharing, counts and digests are there."""
    section = provenance_section(content)
    assert section
    source = html.unescape(section.content.source)
    for expected in (
        "vllm", '"lm-eval": "0.4.13"', "bfloat16", "MarlinLinearKernel", "within rounding", "NVIDIA H100 80GB HBM3",
        "results.h5", "600 missing", content.evidence.runs[0].inputs, "merged by hpcq",
    ):  # fmt: skip
        assert expected in source, expected


def test_the_plan_has_units_and_refusals(content: PageContent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every unit is a line, refused variants have their reason, and a large plan is limited."""
    section = plan_section(content)
    assert section
    units = content.evidence.runs[0].plan_document["units"]
    assert all(f'<th scope="row">{unit["id"]}</th>' in section.content.source for unit in units)
    assert "llama--fp4: needs compute capability 10.0. Try fp8." in section.content.source
    assert "11.8 GPU-hours on h100" in section.content.source
    monkeypatch.setattr(plan_module, "MAX_UNITS", 5)
    limited = plan_section(content)
    assert limited
    assert f"5 of {len(units)} units" in limited.content.source


def attempt(**fields: object) -> AttemptRecord:
    """Return an attempt."""
    start = "2026-11-29T08:00:00+00:00"
    return AttemptRecord(unit="u", attempt=1, job_id="1", node="n", pid=1, **{"start": start, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outcome", "failure", "end"),
    [
        (Outcome.DONE, None, End.DONE),
        (Outcome.RUNNING, None, End.RUNNING),
        (Outcome.INTERRUPTED, None, End.INTERRUPTED),
        (Outcome.INTERRUPTED, Failure.PREEMPTED, End.PREEMPTED),
        (Outcome.FAILED, Failure.PREEMPTED, End.PREEMPTED),
        (Outcome.FAILED, Failure.OUT_OF_MEMORY, End.FAILED),
        (Outcome.UNKNOWN, None, End.FAILED),
    ],
)
def test_the_end_of_an_attempt(outcome: Outcome, failure: Failure | None, end: End) -> None:
    """The class of a failure distinguishes a preemption from other failures."""
    assert end_of(attempt(outcome=outcome, failure=failure)) is end


def test_the_timeline_has_every_attempt(content: PageContent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars and lines name unit, attempt, end and reason; of many units those with most attempts are drawn."""
    section = timeline_section(content)
    assert section
    source = section.content.source
    assert "19 attempts of 15 units: 14 done, 2 preempted, 3 failed." in source
    assert source.count('class="bar ') == 19
    assert "attempt 1: preempted after 24 min" in source
    assert "CUDA out of memory" in source
    monkeypatch.setattr(timeline_module, "MAX_UNITS", 1)
    limited = timeline_section(content)
    assert limited
    assert limited.content.source.count('class="bar ') == 3


def test_a_running_attempt_is_drawn_to_the_last_known_time() -> None:
    """An attempt without an end, and one of no duration, have a bar."""
    attempts = {
        "a": [attempt()],
        "b": [attempt(start="2026-11-29T09:00:00+00:00", end="2026-11-29T09:00:00+00:00", outcome=Outcome.DONE)],
    }
    run = RunEvidence(name="r", attempts=attempts)
    empty = PageContent(runs="r", rows=(), table=None, evidence=Evidence(runs=[run]))  # type: ignore[arg-type]
    section = timeline_section(empty)
    assert section
    assert "running after 1 h 00 min" in section.content.source
    assert timeline_section(dataclasses.replace(empty, evidence=Evidence())) is None
