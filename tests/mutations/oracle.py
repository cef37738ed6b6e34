"""Oracle of the mutations: results of a submission, and the judgement of a mutated input from them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from hpcq.core import errors
from hpcq.core.attempts import read_attempts
from hpcq.core.outcomes import Outcome
from hpcq.store import read_responses, read_results
from hpcq.verify import responses
from tests.mutations.kinds.registry import Effect, Kind, Target
from tests.mutations.processes import CommandOutput

BASE = "bf16"
TOLERANCE, RELATIVE_TOLERANCE = 1e-3, 1e-4
"""Differences of log-likelihoods in float32 that rounding explains; a mutation that matters changes them by more."""

Responses = dict[str, tuple[float | str | None, bool | None]]
"""Log-likelihood or text, and greedy flag, by 'task/document/request'."""


class Class(StrEnum):
    """What happened to a mutated input."""

    REFUSED = "refused before anything ran"
    FAILED = "a unit failed with a sentence"
    EQUAL = "the score of the undamaged input"
    OTHER = "the score of another valid input, as by lm-eval"
    MARKED = "a marked score"
    UNCLEAR = "UNCLEAR: an error without a sentence"
    TRACEBACK = "WRONG: a traceback"
    HUNG = "WRONG: a hang"
    STALE = "WRONG: another input with the old address"
    WRONG = "WRONG: another score without an error or a mark"

    @property
    def is_wrong(self) -> bool:
        """Whether it must never happen."""
        return self.value.startswith("WRONG")

    @property
    def is_finding(self) -> bool:
        """Whether a person has to examine it."""
        return self.is_wrong or self is Class.UNCLEAR


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A class, and the message or difference that it is based on."""

    outcome: Class
    text: str = ""


@dataclass(kw_only=True)
class RunResult:
    """Results of a submission.

    Attributes:
        command: Exit code and output.
        responses: By scheme, only of tasks with a score.
        marks: By scheme: marks and notes of its scores.
        addresses: Evaluation address by scheme.
        failures: Class of the error and reason of each failed unit.
    """

    command: CommandOutput
    responses: dict[str, Responses] = field(default_factory=dict)
    marks: dict[str, list[str]] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)


def judge(kind: Kind, before: RunResult, after: RunResult, reference: Callable[[], Responses | None]) -> Judgement:
    """Judge a submission of a mutated input.

    Args:
        kind: The mutation.
        before: Result with the undamaged input.
        after: Result with the mutated one.
        reference: Returns lm-eval's own responses to the mutated input; None: lm-eval fails.
    """
    if after.command.has_traceback:
        return Judgement(outcome=Class.TRACEBACK, text=tail(after.command.text))
    scores = [_judge_scores(kind, before, after, scheme, reference) for scheme in after.responses]
    wrong = next((one for one in scores if one.outcome.is_wrong), None)
    return wrong or _judge_errors(after) or (scores[0] if scores else _no_result(after))


def _judge_errors(after: RunResult) -> Judgement | None:
    for error, reason in sorted(after.failures, key=lambda failure: _is_sentence(failure[0])):
        return Judgement(outcome=Class.FAILED if _is_sentence(error) else Class.UNCLEAR, text=reason)
    if after.command.code in (2, 3):
        text = tail(after.command.text)
        return Judgement(outcome=Class.REFUSED if text else Class.UNCLEAR, text=text)
    return _no_result(after) if after.command.code else None


def _no_result(after: RunResult) -> Judgement:
    return Judgement(outcome=Class.UNCLEAR, text=f"exit code {after.command.code}: {tail(after.command.text)}")


def _judge_scores(
    kind: Kind, before: RunResult, after: RunResult, scheme: str, reference: Callable[[], Responses | None]
) -> Judgement:
    ours = after.responses[scheme]
    difference = first_difference(ours, before.responses[scheme])
    if difference is None:
        return Judgement(outcome=Class.EQUAL)
    text = f"{scheme}: {difference}"
    if after.addresses[scheme] == before.addresses[scheme]:
        return Judgement(outcome=Class.STALE, text=text)
    marks = [one for one in after.marks.get(scheme, []) if one not in before.marks.get(scheme, [])]
    if marks:
        return Judgement(outcome=Class.MARKED, text=f"{scheme}: {marks}")
    is_finite = all(math.isfinite(value) for value, _ in ours.values() if isinstance(value, float))
    if not is_finite or kind.effect is Effect.MUST_SHOW:
        return Judgement(outcome=Class.WRONG, text=text)
    if scheme != BASE:
        return _judge_quantized(kind, before, after, scheme)
    return (
        Judgement(outcome=Class.WRONG, text=text) if kind.effect is Effect.NONE else _compare(text, ours, reference())
    )


def _compare(text: str, ours: Responses, theirs: Responses | None) -> Judgement:
    if theirs is None:
        return Judgement(outcome=Class.WRONG, text=f"{text} (undamaged); lm-eval cannot evaluate this input")
    difference = first_difference(ours, theirs)
    return Judgement(outcome=Class.WRONG if difference else Class.OTHER, text=f"{difference} (lm-eval)")


def _judge_quantized(kind: Kind, before: RunResult, after: RunResult, scheme: str) -> Judgement:
    """Compare the distance of a quantized variant from its base with that before the mutation."""
    if BASE not in after.responses:
        return Judgement(outcome=Class.OTHER)
    usual = _distance(before.responses[scheme], before.responses[BASE])
    found = _distance(after.responses[scheme], after.responses[BASE])
    is_far = kind.target is Target.WEIGHTS and kind.effect is Effect.NONE and found > 1.5 * usual + 1
    text = f"{scheme}: {found:.2f} nats from its base, {usual:.2f} before"
    return Judgement(outcome=Class.WRONG if is_far else Class.OTHER, text=text)


def first_difference(ours: Responses, theirs: Responses) -> str | None:
    """Return the first response that differs by more than rounding; None: there is none."""
    if ours.keys() != theirs.keys():
        return f"{len(ours)} responses, expected {len(theirs)}"
    for key, (value, _) in ours.items():
        expected = theirs[key][0]
        if isinstance(value, str) or isinstance(expected, str) or value is None or expected is None:
            is_equal = value == expected
        else:
            is_equal = abs(value - expected) <= TOLERANCE + RELATIVE_TOLERANCE * abs(expected)
        if not is_equal:
            return f"{key} is {value!r}, expected {expected!r}"
    return None


def _distance(ours: Responses, theirs: Responses) -> float:
    pairs = [(value, theirs[key][0]) for key, (value, _) in ours.items() if key in theirs]
    numbers = [abs(a - b) for a, b in pairs if isinstance(a, float) and isinstance(b, float)]
    return sum(numbers) / max(1, len(numbers))


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, str], list[tuple[str, str]]]:
    """Return responses, addresses and failures of a run, as `RunResult` has them."""
    answers: dict[str, Any] = {}
    addresses: dict[str, str] = {}
    results = folder / "results.h5"
    for variant in read_results(results).variants if results.is_file() else ():
        scheme = str(variant.provenance["scheme"])
        addresses[scheme] = str(variant.provenance["evaluation_address"])
        scored = {score.task for score in variant.scores}
        found = {
            f"{key.task}/{key.doc_id}/{key.request_index}": (
                response.text if response.loglikelihood is None else response.loglikelihood,
                response.is_greedy,
            )
            for key, response in read_responses(results, variant.variant).items()
            if key.task in scored
        }
        if found:
            answers[scheme] = found
    failures = [
        (records[-1].error or "", records[-1].reason or "")
        for records in read_attempts(folder / "attempts").values()
        if records[-1].outcome is not Outcome.DONE
    ]
    return answers, addresses, failures


def read_marks(text: str) -> dict[str, list[str]]:
    """Return marks of each scheme's rows, and the notes of the report, from its JSON document."""
    document = json.loads(text[text.index("{") :])
    found: dict[str, list[str]] = {}
    for row in document["rows"]:
        marks = row.get("marks") or []
        found.setdefault(row["scheme"], []).extend(map(str, marks))
    notes = [str(note) for note in document.get("notes", [])]
    return {scheme: [*marks, *notes] for scheme, marks in found.items()}


def _is_sentence(error: str) -> bool:
    """Return whether an error of this class has a message for the user. A killed process has no class."""
    known = {one.__name__ for module in (errors, responses) for one in vars(module).values() if _is_hpcq_error(one)}
    return error == "" or error in known


def _is_hpcq_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, errors.HpcqError)


def tail(text: str) -> str:
    """Return the last lines of an output."""
    return " | ".join(text.strip().splitlines()[-3:])[:500]
