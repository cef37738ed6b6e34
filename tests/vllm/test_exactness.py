"""The vLLM back end answers as lm-eval's own does, on the real model, in fp32: every kind of request, every corner."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.attempts import Attempt, AttemptRecord, now
from hpcq.core.work import MergeWork
from hpcq.evaluate.backends.vllm.backend import VllmBackend
from hpcq.evaluate.merge import merge
from hpcq.evaluate.provenance import provenance_of
from hpcq.evaluate.request_set import questions_of
from hpcq.evaluate.requests import GENERATE
from hpcq.store import Response, SegmentWriter, read_results
from tests.vllm.conftest import CORNERS, DEFINITIONS, LIMIT, PROSE, answers, make_work, request

TOLERANCE = 1e-4


@pytest.fixture(scope="session")
def ours(backend: VllmBackend) -> list[Response]:
    """Ours to the corner cases, all in one go."""
    requests = [request(number, kind, arguments) for number, (kind, arguments) in enumerate(CORNERS)]
    kinds = dict.fromkeys(one.kind for one in requests)
    found = dict(backend.stream([[one for one in requests if one.kind == kind] for kind in kinds]))
    assert len(found) == len(requests)
    return [found[one] for one in requests]


@pytest.mark.parametrize("number", range(len(CORNERS)))
def test_every_answer_is_lm_evals(ours: list[Response], theirs: dict[str, Any], number: int) -> None:
    """Texts and greedy flags are lm-eval's own; log-likelihoods are, within 1e-4."""
    answer, expected = ours[number], theirs["answers"][number]
    if isinstance(expected, str):
        assert answer.text == expected
    elif isinstance(expected, list):
        assert answer.loglikelihood == pytest.approx(expected[0], abs=TOLERANCE)
        assert answer.is_greedy == expected[1]
    else:
        assert answer.loglikelihood == pytest.approx(expected, abs=TOLERANCE)


def test_prefixes_are_shared(backend: VllmBackend, ours: list[Response]) -> None:
    """The answers compared above were computed from shared prefixes: the probe allowed it, and the cache was hit."""
    assert ours
    assert backend.describe()["prefix_sharing"] == "exact"
    counts = backend.counts()
    assert counts["computed_tokens"] < 3 / 4 * counts["asked_tokens"]


def test_greedy_is_the_default(backend: VllmBackend) -> None:
    """A task that says neither how to sample nor at what temperature gets greedy text, like one that says so.

    lm-eval 0.4.13 means it too, and lets vLLM sample at its own default of 1.0.
    """
    said = {"until": [], "max_gen_toks": 5}
    asked = [request(0, GENERATE, (PROSE, said)), request(1, GENERATE, (PROSE, {**said, "do_sample": False}))]
    default, greedy = answers(backend, asked)
    assert default == greedy


def test_sampled_text_is_the_requests_own(backend: VllmBackend) -> None:
    """Sampled text does not depend on what is asked beside it, and differs between requests."""
    sampled = {"until": [], "max_gen_toks": 5, "do_sample": True, "temperature": 1.0}
    asked = [request(number, GENERATE, (PROSE, sampled)) for number in range(3)]
    together = answers(backend, asked)
    assert answers(backend, asked[1:2]) == together[1:2]
    assert len(set(together)) == len(together)


def test_scores_of_whole_tasks_are_lm_evals(backend: VllmBackend, theirs: dict[str, Any], tmp_path: Path) -> None:
    """Every metric of every task, by way of the store, has lm-eval's own value."""
    work = make_work(tmp_path)
    questions = questions_of(work.tasks, is_rehearsal=False)
    tasks = groupby(questions.requests, key=lambda one: one.key.task)
    record = AttemptRecord(unit="evaluate", attempt=1, job_id="1", node="here", pid=1, start=now())
    attempt = Attempt(tmp_path / "attempts", record)
    writer = SegmentWriter(
        Path(work.segments_path),
        attempt=1,
        addresses=questions.addresses(work),
        provenance=provenance_of(work, attempt, backend.describe()),
    )
    with writer:
        for one, response in backend.stream([list(members) for _, members in tasks]):
            writer.add(one.key, response)
    results = tmp_path / "results.h5"
    merging = MergeWork(
        run="run", evaluations=(work,), segments_path=str(tmp_path / "segments"), results_path=str(results)
    )
    merge(merging, attempt)

    scores = {(one.task, one.metric, one.filter): one for one in read_results(results).variants[0].scores}
    assert {task for task, _, _ in scores} == set(DEFINITIONS)
    for (task, metric, filter_), one in scores.items():
        assert one.value == pytest.approx(theirs["results"][task][f"{metric},{filter_}"], rel=1e-6)
        assert one.n == LIMIT
