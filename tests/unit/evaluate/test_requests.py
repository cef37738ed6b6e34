"""Requests: how lm-eval's Instances become keys, and what a rehearsal asks."""

from __future__ import annotations

from lm_eval.api.instance import Instance

from hpcq.core.work import Task
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD, rehearsed_requests, requests_of


def _instance(arguments: tuple[object, ...], *, index: int = 0, repeats: int = 1) -> Instance:
    return Instance(
        request_type=LOGLIKELIHOOD, doc={}, arguments=arguments, idx=index, metadata=("arc_challenge", 7, repeats)
    )


def test_repeats_become_requests() -> None:
    """An Instance that is to be asked three times makes three keys, which differ in `repeat` alone."""
    requests = list(requests_of([_instance(("a", " b"), index=2, repeats=3)], "1.0"))

    assert [request.key.repeat for request in requests] == [0, 1, 2]
    assert len({request.key._replace(repeat=0) for request in requests}) == 1
    assert requests[0].key[:4] == ("arc_challenge", "1.0", 7, 2)


def test_another_prompt_is_another_key() -> None:
    """The key tells prompts apart, so that a response is never taken for another prompt's."""
    (one,), (other,) = (list(requests_of([_instance((prompt, " b"))], "1.0")) for prompt in ("a", "A"))

    assert one.key != other.key


def test_rehearsal_asks_as_much_as_the_catalog_expects() -> None:
    """A rehearsed task has the real one's kind and number of requests a document, 100 documents unless limited."""
    arc = rehearsed_requests([Task(name="arc_challenge")])
    gsm8k = rehearsed_requests([Task(name="gsm8k", limit=7, max_gen_toks=5)])

    assert len(arc) == 400
    assert {request.kind for request in arc} == {LOGLIKELIHOOD}
    assert len(gsm8k) == 7
    assert {(request.kind, request.generation["max_gen_toks"]) for request in gsm8k} == {(GENERATE, 5)}
    assert len({request.key for request in arc}) == 400


def test_rehearsal_asks_no_more_documents_than_the_task_has() -> None:
    """A limit above the catalog's number of items, however large, means all of them, as it does of real items."""
    assert len(rehearsed_requests([Task(name="gsm8k", limit=10**29)])) == 1319
