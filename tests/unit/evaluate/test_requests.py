"""Requests from lm-eval's Instances, and synthetic requests."""

from __future__ import annotations

from lm_eval.api.instance import Instance

from hpcq.core.work_records import Task
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD, requests_of, synthetic_requests


def _instance(arguments: tuple[object, ...], *, index: int = 0, repeats: int = 1) -> Instance:
    return Instance(
        request_type=LOGLIKELIHOOD, doc={}, arguments=arguments, idx=index, metadata=("arc_challenge", 7, repeats)
    )


def test_repeats_become_requests() -> None:
    """An Instance with three repeats makes three keys, which differ only in `repeat`."""
    requests = list(requests_of([_instance(("a", " b"), index=2, repeats=3)], "1.0"))

    assert [request.key.repeat for request in requests] == [0, 1, 2]
    assert len({request.key._replace(repeat=0) for request in requests}) == 1
    assert requests[0].key[:4] == ("arc_challenge", "1.0", 7, 2)


def test_another_prompt_is_another_key() -> None:
    """Different prompts have different keys, so that a response is never used for another prompt."""
    (one,), (other,) = (list(requests_of([_instance((prompt, " b"))], "1.0")) for prompt in ("a", "A"))

    assert one.key != other.key


def test_synthetic_requests_are_as_many_as_the_catalog_expects() -> None:
    """A synthetic task has the real one's kind and requests per document, and 100 documents without a limit."""
    arc = synthetic_requests([Task(name="arc_challenge")])
    gsm8k = synthetic_requests([Task(name="gsm8k", limit=7, max_gen_toks=5)])

    assert len(arc) == 400
    assert {request.kind for request in arc} == {LOGLIKELIHOOD}
    assert len(gsm8k) == 7
    assert {(request.kind, request.generation_kwargs["max_gen_toks"]) for request in gsm8k} == {(GENERATE, 5)}
    assert len({request.key for request in arc}) == 400


def test_synthetic_requests_have_at_most_the_documents_of_the_task() -> None:
    """Any limit above the catalog's number of items means all of them, as with real items."""
    assert len(synthetic_requests([Task(name="gsm8k", limit=10**29)])) == 1319
