"""Invariants of a run that has ended, under all faults; and how many of its requests were answered repeatedly, and why.

Reads results files, attempt records and the journals of the synthetic backend.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcq.core.attempts import read_attempts
from hpcq.core.failures import Failure
from hpcq.core.paths import RunLayout

COMMIT_S = 1.5
"""Allowance for a commit after the flush interval, while the work continues."""
OVERLAP_S = 2.0
"""Time between loading the index and the first answer. A process that starts within it cannot know the other's answers.
"""


def differing_datasets(data: Mapping[str, bytes], reference: Mapping[str, bytes]) -> list[str]:
    """Return the names of datasets that differ. `set_aside` is excluded, because `merge_violations` checks it."""
    names = (data.keys() | reference.keys()) - {"set_aside"}
    return sorted(name for name in names if data.get(name) != reference.get(name))


def merge_violations(document: Mapping[str, Any], expected: int, damaged: Collection[str]) -> list[str]:
    """Return what is wrong in the merge report of a run that has ended.

    Args:
        document: Output of `hpcq merge --json`.
        expected: Number of requests.
        damaged: Segments that must have been set aside.
    """
    counts = {"expected": expected, "found": expected, "missing": 0, "conflicts": 0, "unexpected": 0}
    violations = [
        f"merge reports {name} {document[name]} instead of {count}"
        for name, count in counts.items()
        if document[name] != count
    ]
    set_aside = {item["file"] for item in document["set_aside_details"]}
    violations += [f"damaged segment not set aside: {name}" for name in sorted(set(damaged) - set_aside)]
    return violations + [f"intact segment set aside: {name}" for name in sorted(set_aside - set(damaged))]


def misclassified_attempts(layout: RunLayout) -> list[str]:
    """Return attempts whose failure class blames hpcq or the manifest. The injected faults cause neither."""
    return [
        f"{record.unit}.{record.attempt} is classified as {record.failure}: {record.reason}"
        for records in read_attempts(layout.attempts).values()
        for record in records
        if record.failure in (Failure.BUG, Failure.INVALID_INPUT)
    ]


@dataclass(frozen=True, kw_only=True)
class LostWork:
    """Answers that a process had computed but not committed when it died.

    Attributes:
        process: Name of its journal.
        requests: Number of lost answers.
        disk_was_full: Whether nothing could be committed at that time.
        answered: Number of all answers of the process, including committed ones.
        seconds: Time from its first to its last answer.
    """

    process: str
    requests: int
    disk_was_full: bool
    answered: int
    seconds: float

    def delay_s(self, request_s: float) -> float:
        """Return how much longer the process took than its requests: the load of the machine also delays commits."""
        return max(0.0, self.seconds - (self.answered - 1) * request_s)


@dataclass(frozen=True, kw_only=True)
class RepeatedAnswers:
    """Requests that were answered more than once, by reason.

    Attributes:
        answered: Number of answers.
        distinct: Number of distinct requests.
        concurrent: Repeated, because two processes worked on the unit concurrently.
        after_damage: Repeated, because the segment with the answer was damaged.
        lost: Repeated, because a process died before its commit; one item per process.
    """

    answered: int = 0
    distinct: int = 0
    concurrent: int = 0
    after_damage: int = 0
    lost: tuple[LostWork, ...] = field(default=())


def read_journals(folder: Path) -> dict[str, list[tuple[float, str]]]:
    """Return time in seconds and request of all answers of each process, in order. Truncated lines are ignored."""
    return {
        path.name: [
            (float(second), request)
            for second, _, request in (
                line.partition(" ") for line in path.read_text().split("\n")[:-1] if line.count(" ") > 1
            )
        ]
        for path in sorted(folder.iterdir())
    }


def count_repeated_answers(
    journals: Mapping[str, Sequence[tuple[float, str]]],
    damaged_requests: Collection[str],
    disk_full_periods_s: Collection[tuple[float, float]] = (),
) -> RepeatedAnswers:
    """Count why requests were answered again.

    Args:
        journals: Time in seconds and request of each answer, by process.
        damaged_requests: Requests whose segment was damaged.
        disk_full_periods_s: Start and end of each full disk, by the same clock as the journals.
    """
    answers: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for process, lines in journals.items():
        for second, request in lines:
            answers[request].append((second, process))
    ends = {process: lines[-1][0] for process, lines in journals.items() if lines}
    starts = {process: lines[0][0] for process, lines in journals.items() if lines}
    concurrent = after_damage = 0
    lost: dict[str, list[float]] = defaultdict(list)
    for request, found in answers.items():
        found.sort()
        for (second, process), (_, later) in itertools.pairwise(found):
            if request in damaged_requests:
                after_damage += 1
            elif starts[later] < ends[process] + OVERLAP_S:
                concurrent += 1
            else:
                lost[process].append(second)
    return RepeatedAnswers(
        answered=sum(map(len, answers.values())),
        distinct=len(answers),
        concurrent=concurrent,
        after_damage=after_damage,
        lost=tuple(
            LostWork(
                process=process,
                requests=len(seconds),
                disk_was_full=any(
                    start_s <= ends[process] and min(seconds) <= end_s for start_s, end_s in disk_full_periods_s
                ),
                answered=len(journals[process]),
                seconds=ends[process] - starts[process],
            )
            for process, seconds in sorted(lost.items())
        ),
    )


def excessive_losses(repeats: RepeatedAnswers, *, request_s: float, flush_interval_s: float) -> list[str]:
    """Return the processes that lost more than one flush interval of work, although the disk was not full.

    Losses are counted in requests, which have a known duration, and the delay of the process's answers is allowed for
    its commits, too, so that a slow machine is not a violation.
    """
    limit_s = flush_interval_s + COMMIT_S
    return [
        f"process {lost.process} lost {lost.requests} answers, {lost.requests * request_s:.2f} s of work "
        f"(limit: {limit_s + lost.delay_s(request_s):g} s)"
        for lost in repeats.lost
        if lost.requests * request_s > limit_s + lost.delay_s(request_s) and not lost.disk_was_full
    ]
