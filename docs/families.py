"""Tables of families, schemes and backends: recorded checkpoints and scores, and the planner's refusals.

`python -m tests.quantize_matrix --write` records the checkpoints of tiny models in families.json. A pair that the
planner refuses has no record. `python -m tests.models.family_scores --write` records in family_scores.json what the
backends compute with these models and checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docs.family_scores import RECORD as SCORES
from docs.family_scores import UNQUANTIZED
from hpcq.catalog.kernels import find_kernel
from hpcq.catalog.unquantized_modules import has_experts
from tests.families import FAMILIES
from tests.quantize_matrix import SCHEMES, named_scheme, planned_problem

RECORD = Path(__file__).with_name("families.json")
BACKENDS = ("accelerate", "vllm")
_NO_KERNEL, _NOT_MEASURED = "no kernel", "?"
_SECOND = """\
Log-likelihoods of the same models and checkpoints in float32 on CPUs: the largest difference from lm-eval's own, in
nats. Two of equal value are within 1e-4 nats and 1e-5 of the value; "differs by" marks others. "–" is a pair without a
checkpoint, or a refusal at plan time, whose reason has the number in parentheses. "no kernel" is a refusal because vLLM
computes no quantized experts on CPUs. "?" is a pair that is planned, but not measured. vLLM 0.32 was measured on CPUs
only: its kernels for GPUs are not in this table."""

Checkpoints = Mapping[str, Mapping[str, Mapping[str, Any]]]
Scores = Mapping[tuple[str, str, str], Mapping[str, Any]]


class Footnotes:
    """Numbered reasons below a table; equal reasons have one number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, family: str, reason: str) -> int:
        """Return the number of a reason, in which the name of the family is replaced."""
        model_type = FAMILIES[family].model_type
        general = reason.replace(f" ('{model_type}')", "").replace(f"'{model_type}'", "this family")
        return self._numbers.setdefault(general, len(self._numbers) + 1)

    def lines(self) -> list[str]:
        """Return the list of reasons as Markdown."""
        return [f"{number}. {reason}" for reason, number in self._numbers.items()]


def families_table() -> str:
    """Return both tables, each with the reasons of its refusals, as Markdown.

    Raises:
        ValueError: A pair with a record is refused by the planner.
    """
    found = json.loads(RECORD.read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [f"Recorded with {versions}.", "", *_checkpoints_table(found["checkpoints"]), "", "### Backends", ""]
    return "\n".join([*lines, *_backends_table(found["checkpoints"], _scores())]) + "\n"


def _scores() -> Scores:
    rows = json.loads(SCORES.read_text(encoding="utf-8"))
    return {(row["model"], row["scheme"], row["backend"]): row for row in rows}


def _checkpoints_table(checkpoints: Checkpoints) -> Iterator[str]:
    notes = Footnotes()
    yield f"| family | {' | '.join(f'`{scheme}`' for scheme in SCHEMES)} |"
    yield "|---" * (len(SCHEMES) + 1) + "|"
    for family in FAMILIES:
        cells = [_checkpoint_cell(family, scheme, checkpoints, notes) for scheme in SCHEMES]
        yield f"| {family} | {' | '.join(cells)} |"
    yield from ("", *notes.lines())


def _checkpoint_cell(family: str, scheme: str, checkpoints: Checkpoints, notes: Footnotes) -> str:
    problem = planned_problem(family, scheme)
    record = checkpoints.get(family, {}).get(scheme)
    if record is not None and problem is not None:
        raise ValueError(f"{family}, {scheme}: run `python -m tests.quantize_matrix --write` again: {problem}")
    if problem is not None:
        return f"– ({notes.number(family, problem)})"
    if record is None:
        return "accepted"
    total = record["quantized_linears"] + record["unquantized_linears"]
    return f"{record['quantized_linears']}/{total}, {record['largest_error']:.2f}"


def _backends_table(checkpoints: Checkpoints, scores: Scores) -> Iterator[str]:
    notes = Footnotes()
    columns = [(scheme, backend) for scheme in (UNQUANTIZED, *SCHEMES) for backend in BACKENDS]
    columns = [(scheme, backend) for scheme, backend in columns if not _is_unsupported(scheme, backend)]
    unsupported = [scheme for scheme in SCHEMES if _is_unsupported(scheme, "vllm")]
    titles = {scheme: f"`{scheme}`" for scheme in SCHEMES} | {UNQUANTIZED: "unquantized"}
    yield f"{_SECOND} It has no kernel on CPUs for {', '.join(titles[one] for one in unsupported)}: no column."
    yield ""
    yield f"| family | {' | '.join(f'{titles[scheme]}, {backend}' for scheme, backend in columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for family in FAMILIES:
        cells = [_score_cell(family, scheme, backend, checkpoints, scores, notes) for scheme, backend in columns]
        yield f"| {family} | {' | '.join(cells)} |"
    yield from ("", *notes.lines())


def _is_unsupported(scheme: str, backend: str) -> bool:
    return scheme != UNQUANTIZED and find_kernel(backend, named_scheme(scheme), None) is None


def _score_cell(
    family: str, scheme: str, backend: str, checkpoints: Checkpoints, scores: Scores, notes: Footnotes
) -> str:
    if scheme != UNQUANTIZED and scheme not in checkpoints.get(family, {}):
        return "–"
    row = scores.get((family, scheme, backend))
    if row is None:
        is_refused = scheme != UNQUANTIZED and find_kernel(
            backend, named_scheme(scheme), None, has_experts=has_experts(FAMILIES[family].sizes)
        ) is None  # fmt: skip
        return _NO_KERNEL if is_refused else _NOT_MEASURED
    problem = row["refused"] or row["failed"]
    if problem:
        return f"– ({notes.number(family, problem)})"
    return f"{'' if row['is_equal'] else 'differs by '}{row['difference']:.0e}"
