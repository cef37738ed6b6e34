"""What must be true of a run when it has ended, whatever was done to it; and how much of its work was done twice.

Knows results files, attempts' records and the rehearsal's journal. Knows nothing of faults.
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
"""That a commit may take beyond the flush interval, on a slow and busy machine, while the work goes on."""
OVERLAP_S = 2.0
"""Between reading what is known and the first answer: a process that starts so soon had no chance to know better."""


def differences(here: Mapping[str, bytes], there: Mapping[str, bytes]) -> list[str]:
    """Names of the datasets that are not the same bytes in both; what was set aside is judged by itself."""
    names = (here.keys() | there.keys()) - {"set_aside"}
    return sorted(name for name in names if here.get(name) != there.get(name))


def merge_violations(document: Mapping[str, Any], expected: int, damaged: Collection[str]) -> list[str]:
    """What the merge of a run that has ended may not say. `damaged`: the files that it must have set aside."""
    wanted = {"expected": expected, "found": expected, "missing": 0, "conflicts": 0, "unexpected": 0}
    said = [
        f"merge says {name} {document[name]}, not {want}" for name, want in wanted.items() if document[name] != want
    ]
    aside = {item["file"] for item in document["set_aside_details"]}
    said += [f"damaged, and not set aside: {name}" for name in sorted(set(damaged) - aside)]
    return said + [f"sound, and set aside: {name}" for name in sorted(aside - set(damaged))]


def taken_for_bugs(layout: RunLayout) -> list[str]:
    """Attempts that a fault of the machine's ended, and that say that hpcq, or the manifest, is to blame."""
    return [
        f"{record.unit}.{record.attempt} says {record.failure}: {record.reason}"
        for records in read_attempts(layout.attempts).values()
        for record in records
        if record.failure in (Failure.BUG, Failure.INVALID_INPUT)
    ]


@dataclass(frozen=True, kw_only=True)
class Lost:
    """What one process had answered, and not committed, when it was over. disk_was_full: nothing could be committed."""

    process: str
    requests: int
    disk_was_full: bool


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """What was answered more than once. answered: in all. concurrent: while both processes were alive.

    forgiven: because the segment with the answer had been damaged. lost: by each process that was cut off.
    """

    answered: int = 0
    distinct: int = 0
    concurrent: int = 0
    forgiven: int = 0
    lost: tuple[Lost, ...] = field(default=())


def read_journal(folder: Path) -> dict[str, list[tuple[float, str]]]:
    """Process → (second, request) of all that it answered, in order; a line that a kill has cut is left out."""
    return {
        path.name: [
            (float(second), request)
            for second, _, request in (
                line.partition(" ") for line in path.read_text().split("\n")[:-1] if line.count(" ") > 1
            )
        ]
        for path in sorted(folder.iterdir())
    }


def repeats_in(
    journal: Mapping[str, Sequence[tuple[float, str]]],
    forgiven: Collection[str],
    full: Collection[tuple[float, float]] = (),
) -> Repeats:
    """Tell apart why requests were answered again: lost with a process, at once by two, or damaged.

    full: from when to when the disk was full.
    """
    answers: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for process, lines in journal.items():
        for second, request in lines:
            answers[request].append((second, process))
    ends = {process: lines[-1][0] for process, lines in journal.items() if lines}
    begins = {process: lines[0][0] for process, lines in journal.items() if lines}
    concurrent = excused = 0
    lost: dict[str, list[float]] = defaultdict(list)
    for request, found in answers.items():
        found.sort()
        for (second, process), (_, later) in itertools.pairwise(found):
            if request in forgiven:
                excused += 1
            elif begins[later] < ends[process] + OVERLAP_S:
                concurrent += 1
            else:
                lost[process].append(second)
    return Repeats(
        answered=sum(map(len, answers.values())),
        distinct=len(answers),
        concurrent=concurrent,
        forgiven=excused,
        lost=tuple(
            Lost(
                process=process,
                requests=len(seconds),
                disk_was_full=any(began_s <= ends[process] and min(seconds) <= ended_s for began_s, ended_s in full),
            )
            for process, seconds in sorted(lost.items())
        ),
    )


def too_much_lost(repeats: Repeats, *, request_s: float, flush_interval_s: float) -> list[str]:
    """Processes that lost more than a flush interval's work, though the disk was not full.

    Counted in requests, which have a known pace, so that a slow machine is not blamed.
    """
    bound_s = flush_interval_s + COMMIT_S
    return [
        f"process {lost.process} lost {lost.requests} answers, {lost.requests * request_s:.2f} s of work, "
        f"where {bound_s:g} s are the most"
        for lost in repeats.lost
        if lost.requests * request_s > bound_s and not lost.disk_was_full
    ]
