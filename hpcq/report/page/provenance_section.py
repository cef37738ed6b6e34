"""Section of the provenance: what produced the scores, with what all variants have in common first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import hpcq
from hpcq.report.page.content import PageContent
from hpcq.report.page.evidence import RunEvidence
from hpcq.report.page.markup import Content, Html, join, tag
from hpcq.report.page.sections import Section, folded, paragraph
from hpcq.report.page.tables import Cell, Heading, Record, data_table

_FIRST = (
    "model", "model_revision", "scheme", "tool", "quantizer_versions", "backend", "backend_versions", "dtype", "device",
    "gpu_class", "quantization", "quantization_kernels", "prefix_sharing", "prefix_sharing_difference",
    "prefix_sharing_tolerance", "batch_difference", "seed", "checkpoint", "checkpoint_bytes",
)  # fmt: skip
"""Attributes in this order, before all others."""
_LONG, _SUMMARY = 120, 30
"""Characters from which a value is folded, and those that are shown then."""


def provenance_section(content: PageContent) -> Section | None:
    """Return the section; None without evidence."""
    if not content.evidence.runs:
        return None
    parts = [_run(content, run) for run in content.evidence.runs]
    words = paragraph(
        "Every number in this page is stored in the results file, or is computed from it by hpcq"
        f" {hpcq.__version__}. Attributes are those of /responses/<variant> in that file."
    )
    return Section(id="provenance", link="Provenance", title="Provenance", content=join((words, *parts)))


def _run(content: PageContent, run: RunEvidence) -> Html:
    parts: list[Content] = [tag("h3", run.name), _facts(run)]
    common, different = split_attributes(run.variants)
    order = list(content.names)
    variants = sorted(run.variants, key=lambda one: order.index((run.name, one)) if (run.name, one) in order else -1)
    parts.append(_attributes(common))
    headings = [Heading(name="attribute"), *(Heading(name=_name(content, run, one)) for one in variants)]
    records = [
        Record(cells=(name, *(Cell(content=_value(values.get(one))) for one in variants)))
        for name, values in different.items()
    ]
    if records:
        table = data_table(headings, records, label=f"Attributes that differ between the variants of {run.name}")
        parts.append(folded("Attributes that differ between variants", table, class_="more", is_open=True))
    return join(parts)


def _name(content: PageContent, run: RunEvidence, variant: str) -> str:
    return content.names.get((run.name, variant), variant)


def _facts(run: RunEvidence) -> Html:
    """Return what belongs to the run as a whole."""
    merge = {name: value for name, value in run.merge.items() if isinstance(value, int) and name != "schema"}
    facts = {
        "results": run.results,
        "digest of all inputs": run.inputs,
        "merged by hpcq": run.provenance.get("hpcq"),
        "git commit": run.provenance.get("git_commit"),
        "responses": ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in merge.items()),
        "plan": run.plan_document.get("address"),
    }
    pairs = [part for name, value in facts.items() if value for part in (tag("dt", name), tag("dd", str(value)))]
    return tag("dl", *pairs, class_="facts")


def split_attributes(
    variants: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the attributes that all variants have with the same value, and the others by name and variant."""
    names = dict.fromkeys(name for one in variants.values() for name in one)
    ordered = [*(name for name in _FIRST if name in names), *(name for name in names if name not in _FIRST)]
    common, different = {}, {}
    for name in ordered:
        values = {variant: one.get(name) for variant, one in variants.items()}
        if len({json.dumps(value, default=str) for value in values.values()}) == 1:
            common[name] = next(iter(values.values()))
        else:
            different[name] = values
    return common, different


def _attributes(common: Mapping[str, Any]) -> Html:
    pairs = [part for name, value in common.items() for part in (tag("dt", name), tag("dd", _value(value)))]
    return folded("Attributes that all variants have in common", tag("dl", *pairs, class_="facts"), class_="more")


def _value(value: object) -> Html:
    """Return a value; JSON documents are indented."""
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    if len(text) <= _LONG:
        return tag("code", text)
    document = _document(text)
    whole = text if document is None else json.dumps(document, indent=1, ensure_ascii=False)
    return folded(f"{text[:_SUMMARY]} …", tag("pre", whole))


def _document(text: str) -> Sequence[Any] | Mapping[str, Any] | None:
    if not text.startswith(("{", "[")):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list | dict) else None
