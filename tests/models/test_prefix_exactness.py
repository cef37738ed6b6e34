"""Responses of the real model from shared prefixes, compared with lm-eval's own backend request by request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from hpcq.catalog.packages import staged_dataset_path, staged_model_path
from hpcq.core.errors import UserInputError
from hpcq.core.work_records import EvaluateWork, Model, Scheme, Task, Variant
from hpcq.evaluate.backends.transformers.backend import AccelerateBackend
from hpcq.evaluate.lm_eval_tasks import build_tasks
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD, LOGLIKELIHOOD_ROLLING, Request, requests_of
from hpcq.store import Response

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
BASE = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
EXAMPLES = "Question: What falls from clouds?\nAnswer: rain\n\nQuestion: What do cows drink?\nAnswer: water\n\n"
QUESTION = f"{EXAMPLES}Question: What is the capital of France?\nAnswer:"
# lm-eval's own backend computes one request at a time, so that there is no padding.
TOLERANCE = 1e-4

PARIS = " Paris, of course"
ICE = f"{EXAMPLES}Question: Is ice cold?\nAnswer:"
USER = "<|im_start|>user\nHello"

PAIRS = {
    "choices of several tokens": [(QUESTION, f" {name}") for name in ("Paris", "Rome in Italy", "Parisian food")],
    "choices of one token": [(QUESTION, letter) for letter in (" A", " B", " C", " D")],
    "a choice that others begin with": [(QUESTION, " Paris"), (QUESTION, PARIS), (QUESTION, " Paris,")],
    "the same request twice": [(QUESTION, PARIS), (QUESTION, PARIS)],
    "a question behind the same examples": [(ICE, " yes"), (EXAMPLES, "Question: Is ice")],
    "an empty context": [("", "The capital of France"), ("", "The capital of Spain"), ("", "<|im_start|> The capital")],
    "a context that ends in blanks": [(f"{QUESTION}  ", "Paris"), (f"{QUESTION}\n", "Paris"), (f"{QUESTION} ", "Rome")],
    "a context that begins with the first token": [(USER, " there"), (USER, ", you")],
    "contexts that share nothing": [("The sky is", " blue"), ("2 + 2 =", " 4"), ("Où est", " la gare ?")],
    "a continuation longer than its context": [("In", f" the beginning. {EXAMPLES}"), ("In", " the end.")],
}


def work_of(**options: float) -> EvaluateWork:
    """Return an evaluation in fp32 on the CPU; prefixes are shared unless `options` disable it."""
    model = str(staged_model_path(MODEL_ID))
    return EvaluateWork(
        variant=Variant(model=Model(id=MODEL_ID, path=model), scheme=BASE),
        tasks=(),
        backend="accelerate",
        dtype="float32",
        checkpoint_path=model,
        segments_path="",
        device="cpu",
        options=tuple(options.items()),
    )


def loaded(**options: float) -> AccelerateBackend:
    """Return a loaded backend."""
    backend = AccelerateBackend(work_of(**options))
    backend.load()
    return backend


@pytest.fixture(scope="module")
def backend() -> AccelerateBackend:
    """Return a loaded backend for all tests."""
    backend = loaded()
    assert backend.describe()["prefix_sharing"] == "exact"
    return backend


def requests(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Request]:
    """Return one request for each of `arguments`, of a task that lm-eval does not have."""
    instances = [
        Instance(request_type=kind, doc={}, arguments=one, idx=0, metadata=("made_up", number, 1))
        for number, one in enumerate(arguments)
    ]
    return list(requests_of(instances, "1"))


def lm_eval_answers(backend: AccelerateBackend, chunk: Sequence[Request]) -> list[Any]:
    """Return the answers of lm-eval's own backend with the same loaded model, one request at a time."""
    lm = backend._lm
    lm.batch_size_per_gpu = 1
    return getattr(lm, chunk[0].kind)([request.instance for request in chunk], disable_tqdm=True)


def responses_to(backend: AccelerateBackend, chunk: Sequence[Request]) -> list[Response]:
    """Return the responses of the backend to one chunk, in the order of its requests."""
    found = dict(backend.stream([chunk], answered=()))
    return [found[request] for request in chunk]


def assert_equal(responses: Sequence[Response], expected: Sequence[tuple[float, bool]]) -> None:
    """Assert log-likelihoods within the tolerance, and equal greedy flags."""
    for response, (value, is_greedy) in zip(responses, expected, strict=True):
        assert response.loglikelihood == pytest.approx(value, abs=TOLERANCE)
        assert response.is_greedy == is_greedy


@pytest.fixture(scope="module")
def expected(backend: AccelerateBackend) -> dict[tuple[str, str], tuple[float, bool]]:
    """Return the answer of lm-eval's own backend to each pair."""
    pairs = list(dict.fromkeys(pair for pairs in PAIRS.values() for pair in pairs))
    return dict(zip(pairs, lm_eval_answers(backend, requests(LOGLIKELIHOOD, pairs)), strict=True))


@pytest.mark.parametrize("corner", PAIRS)
def test_every_answer_is_lm_evals(
    backend: AccelerateBackend, expected: dict[tuple[str, str], tuple[float, bool]], corner: str
) -> None:
    """For all kinds of shared prefixes, log-likelihoods are within 1e-4 of lm-eval's and greedy flags are equal."""
    answers = responses_to(backend, requests(LOGLIKELIHOOD, PAIRS[corner]))

    assert_equal(answers, [expected[pair] for pair in PAIRS[corner]])


def test_all_corners_in_one_chunk(
    backend: AccelerateBackend, expected: dict[tuple[str, str], tuple[float, bool]]
) -> None:
    """Requests of all kinds together get the same answers, and fewer tokens are computed than requested."""
    pairs = [pair for pairs in PAIRS.values() for pair in pairs]
    before = backend.token_counts()

    assert_equal(responses_to(backend, requests(LOGLIKELIHOOD, pairs)), [expected[pair] for pair in pairs])
    after = backend.token_counts()
    computed = after["computed_tokens"] - before["computed_tokens"]
    assert 3 * computed < after["asked_tokens"] - before["asked_tokens"]


@pytest.mark.parametrize("options", [{"max_length": 24}, {"add_bos_token": True}], ids=["cut from the left", "BOS"])
def test_lengths_and_first_tokens_are_lm_evals(options: dict[str, float]) -> None:
    """With contexts truncated from the left, or with an added first token, answers equal lm-eval's."""
    backend = loaded(**options)
    few = [pair for pairs in PAIRS.values() for pair in pairs if len(pair[1]) < 30]
    chunk = requests(LOGLIKELIHOOD, few)

    assert backend.describe()["prefix_sharing"] == "exact"
    assert_equal(responses_to(backend, chunk), lm_eval_answers(backend, chunk))


def test_windows_of_a_long_text_are_lm_evals() -> None:
    """loglikelihood_rolling, with its windows, gives exactly lm-eval's bits."""
    backend = loaded(max_length=48)
    chunk = requests(LOGLIKELIHOOD_ROLLING, [(EXAMPLES * 2,), (EXAMPLES,)])

    assert [response.loglikelihood for response in responses_to(backend, chunk)] == lm_eval_answers(backend, chunk)


def test_generated_text_is_lm_evals(backend: AccelerateBackend) -> None:
    """Texts stop at the same stop strings and lengths as with lm-eval's own backend."""
    arguments = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    chunk = requests(GENERATE, [(QUESTION, arguments), (f"{EXAMPLES}Question:", arguments)])

    assert [response.text for response in responses_to(backend, chunk)] == lm_eval_answers(backend, chunk)


def test_a_text_that_leaves_no_room_for_a_prompt_is_refused(backend: AccelerateBackend) -> None:
    """The message has both lengths and the keys, as with vLLM; lm-eval's own is an assertion."""
    chunk = requests(GENERATE, [(QUESTION, {"until": [], "max_gen_toks": 8192, "do_sample": False})])
    with pytest.raises(UserInputError, match=r"up to 8192 tokens leaves no room .* tasks\.options\.TASK\.max_gen_toks"):
        responses_to(backend, chunk)


@pytest.fixture(scope="module")
def hellaswag() -> list[Request]:
    """Return real requests: three documents, each with its own examples."""
    task = Task(name="hellaswag", data_path=str(staged_dataset_path("hellaswag")), limit=3, num_fewshot=1)
    [built] = build_tasks([task])
    return built.requests()


def test_a_chunk_always_has_the_same_bits(backend: AccelerateBackend, hellaswag: list[Request]) -> None:
    """Chunks in another order, after a restart, or alone get the same bits."""
    documents = sorted({request.key.doc_id for request in hellaswag})
    chunks = [[request for request in hellaswag if request.key.doc_id == document] for document in documents]
    first = dict(backend.stream(chunks, answered=()))

    backwards = dict(backend.stream([chunk[::-1] for chunk in chunks[::-1]], answered=()))
    again = dict(loaded().stream(chunks[1:2], answered=()))

    assert backwards == first
    assert again == {request: first[request] for request in chunks[1]}


def test_an_interrupted_chunk_continues_with_the_same_bits(
    backend: AccelerateBackend, hellaswag: list[Request]
) -> None:
    """Of an interrupted chunk, only what the missing responses need is computed again, with the same bits."""
    before = backend.token_counts()["computed_tokens"]
    whole = list(backend.stream([hellaswag], answered=()))
    cost = backend.token_counts()["computed_tokens"] - before
    known = {request.key for request, _ in whole[: len(whole) * 4 // 5]}

    rest = dict(backend.stream([hellaswag], known))

    assert {request.key for request in rest}.isdisjoint(known)
    assert rest == {request: response for request, response in whole if request.key not in known}
    assert backend.token_counts()["computed_tokens"] - before - cost < cost


def test_responses_are_yielded_early(backend: AccelerateBackend, hellaswag: list[Request]) -> None:
    """The first response is yielded before the whole chunk is computed, so that it can be committed."""
    passes: list[int] = []
    hook = backend._lm.model.lm_head.register_forward_hook(lambda *_: passes.append(1))
    stream = backend.stream([hellaswag], answered=())

    next(stream)
    at_first = len(passes)
    rest = list(stream)
    hook.remove()

    assert at_first < len(passes)
    assert len(rest) == len(hellaswag) - 1


def test_without_sharing_answers_are_lm_evals(hellaswag: list[Request]) -> None:
    """Without prefix sharing, answers have exactly lm-eval's bits, and the backend reports that it is switched off."""
    backend = loaded(prefix_sharing=False)
    answers = [(response.loglikelihood, response.is_greedy) for response in responses_to(backend, hellaswag[:2])]

    assert backend.describe()["prefix_sharing"] == "switched off"
    assert answers == lm_eval_answers(backend, hellaswag[:2])


def test_prefix_sharing_changes_the_address() -> None:
    """Responses with and without prefix sharing have different addresses; those with it are unchanged."""
    task = Task(name="hellaswag")
    on, off = work_of(), work_of(prefix_sharing=False)

    assert on.task_address(task) != off.task_address(task)
    assert on.task_address(task) == replace(on, batch_size=7).task_address(task)
