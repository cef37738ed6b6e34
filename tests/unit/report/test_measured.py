"""What was really measured is in every format: backend, kernels, data type, prompts, items, prefixes, versions."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from hpcq.report.exports import EXPORTERS
from hpcq.report.formats import FORMATTERS
from hpcq.report.make_report import MergedRun, build_report
from hpcq.store import Index, MergeReport, RequestKey, Response, Score, VariantResults, write_results
from hpcq.store.response_columns import Table, columns_from_rows
from hpcq.store.results import MissingRows
from hpcq.verify.marks import Mark, MarkKind

KERNELS = "MarlinLinearKernel"
FACTS = {
    "kernel": KERNELS,
    "faithful": "every implementation of this layer rounds its weights alone",
    "backend": "vllm",
    "data type": "float16",
    "prompts cut": "7 of 40 prompts, by up to 12 tokens",
    "missing": "4713",
    "not finite": "3 of 40 responses",
    "items of how many": "1172",
    "prefix sharing": "within the rounding of quantized activations",
    "quantizer": "0.14.0.1",
    "task version": "0.4.13",
    "other backend of the baseline": "accelerate",
    "GPU classes": "h100, a100",
}
"""Texts that must be in a report, by fact."""
MARKS = (
    Mark(kind=MarkKind.UNROUNDED_ACTIVATIONS, detail=FACTS["faithful"]),
    Mark(kind=MarkKind.PROMPTS_CUT, detail=FACTS["prompts cut"], task="arc_challenge", affected=7, total=40),
    Mark(kind=MarkKind.NOT_FINITE, detail=FACTS["not finite"], task="gsm8k", affected=3, total=40),
)
IN_OTHER_WORDS = {("items of how many", form): "1,172" for form in ("text", "md", "latex", "html")}
NOT_THERE = {("other backend of the baseline", form) for form in EXPORTERS}
"""A file of an export has one variant: there is no difference whose sides could have different backends."""


def variant(scheme: str, backend: str) -> VariantResults:
    """Return a variant with one response, a score and everything that the facts name."""
    is_baseline = scheme == "bf16"
    key = RequestKey("arc_challenge", "1", 0, 0, 0, "0" * 32)
    columns = columns_from_rows([(key, Response(-1.0, is_greedy=False, cut_tokens=0))])
    table = Table(task="arc_challenge", task_version="1", address="a", columns=columns)
    provenance = {
        "model": "org/m", "scheme": scheme, "tool": "none" if is_baseline else "llmcompressor", "backend": backend,
        "dtype": "float16", "evaluate_seconds": 1.0, "device": "NVIDIA H100", "gpu_class": "h100, a100",
        "backend_versions": json.dumps({"lm-eval": "0.4.13", backend: "0.32.0"}),
        "quantizer_versions": json.dumps({} if is_baseline else {"llmcompressor": "0.14.0.1"}),
        "quantization_kernels": "" if is_baseline else KERNELS,
        "prefix_sharing": "exact" if is_baseline else FACTS["prefix sharing"],
        "recipe": json.dumps({"weights": "bf16"}),
    }  # fmt: skip
    return VariantResults(
        variant=f"m--{scheme}",
        index=Index(tables=(table,), conflicts=(), set_aside=(), segments=(), duplicates=0, ignored=0, inputs=scheme),
        scores=[Score(task="arc_challenge", metric="acc_norm", filter="none", value=0.5, stderr=0.1, n=40)],
        provenance=provenance,
        marks=() if is_baseline else [mark.as_json() for mark in MARKS],
    )


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Return the report of a run in every format; of exports, the files of the quantized variant."""
    folder = tmp_path_factory.mktemp("measured")
    missing = MissingRows(variant="m--w4", task="gsm8k", rows=4713)
    write_results(
        folder / "results.h5",
        run="r",
        provenance={},
        variants=[variant("bf16", "accelerate"), variant("w4", "vllm")],
        merge=MergeReport(
            expected=4793, found=80, missing=4713, duplicates=0, conflicts=(), set_aside=(), missing_from=(missing,)
        ),
    )
    units = [{"id": name, "variant": name, "tasks": ["arc_challenge"]} for name in ("m--bf16", "m--w4")]
    run = MergedRun(name="r", results=folder / "results.h5", plan_document={"units": units})
    report = build_report([run])
    found = {form: write(report) for form, write in FORMATTERS.items()}
    for form, export in EXPORTERS.items():
        own = [path for path in export([run], folder / form) if "w4" in str(path.parent)]
        found[form] = "".join(map(_content, own))
    return found


def _content(path: Path) -> str:
    if path.suffix != ".eval":
        return path.read_text(encoding="utf-8")
    with zipfile.ZipFile(path) as archive:
        return archive.read("header.json").decode()


@pytest.mark.parametrize("form", [*FORMATTERS, *EXPORTERS])
@pytest.mark.parametrize("fact", FACTS)
def test_every_format_says_what_was_measured(texts: Mapping[str, str], fact: str, form: str) -> None:
    """The number, name or sentence is in the output, or what it means is marked there."""
    if (fact, form) in NOT_THERE:
        return
    wanted = IN_OTHER_WORDS.get((fact, form), FACTS[fact])
    assert wanted in " ".join(texts[form].replace("\\_", "_").split())


@pytest.mark.parametrize("form", ["text", "md", "latex", "html"])
def test_a_difference_across_backends_is_marked(texts: Mapping[str, str], form: str) -> None:
    """The sign is at the difference, and its note names the variant; CSV and JSON have both backends."""
    sign = r"\dag{}" if form == "latex" else "\N{DAGGER}"
    assert texts[form].count(sign) >= 2
    assert "w4 by vllm: evaluated with another backend than the baseline" in " ".join(texts[form].split())
