"""The real model's answers from shared prefixes, request by request beside those of lm-eval's own back end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from hpcq.catalog.packages import staged_items, staged_model
from hpcq.core.work import EvaluateWork, Model, Scheme, Task, Variant
from hpcq.evaluate.backends.transformers.backend import AccelerateBackend
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD, LOGLIKELIHOOD_ROLLING, Request, requests_of
from hpcq.evaluate.tasks import build_tasks
from hpcq.store import Response

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
BASE = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
EXAMPLES = "Question: What falls from clouds?\nAnswer: rain\n\nQuestion: What do cows drink?\nAnswer: water\n\n"
QUESTION = f"{EXAMPLES}Question: What is the capital of France?\nAnswer:"
# lm-eval's own back end is asked one request at a time, so that nothing of it is padding.
TOLERANCE = 1e-4

PARIS = " Paris, of course"
ICE = f"{EXAMPLES}Question: Is ice cold?\nAnswer:"
USER = "<|im_start|>user\nHello"

PAIRS = {
    "choices of several tokens": [(QUESTION, f" {name}") for name in ("Paris", "Rome in Italy", "Parisian food")],
    "choices of one token": [(QUESTION, letter) for letter in (" A", " B", " C", " D")],
    "a choice that others begin with": [(QUESTION, " Paris"), (QUESTION, PARIS), (QUESTION, " Paris,")],
    "a request asked twice": [(QUESTION, PARIS), (QUESTION, PARIS)],
    "a question behind the same examples": [(ICE, " yes"), (EXAMPLES, "Question: Is ice")],
    "an empty context": [("", "The capital of France"), ("", "The capital of Spain"), ("", "<|im_start|> The capital")],
    "a context that ends in blanks": [(f"{QUESTION}  ", "Paris"), (f"{QUESTION}\n", "Paris"), (f"{QUESTION} ", "Rome")],
    "a context that begins with the first token": [(USER, " there"), (USER, ", you")],
    "contexts that share nothing": [("The sky is", " blue"), ("2 + 2 =", " 4"), ("Où est", " la gare ?")],
    "a continuation longer than its context": [("In", f" the beginning. {EXAMPLES}"), ("In", " the end.")],
}


def work_of(**options: float) -> EvaluateWork:
    """A work of the back end's, in fp32 on the CPU, that shares prefixes unless `options` say otherwise."""
    model = str(staged_model(MODEL_ID))
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
    """The back end, ready."""
    backend = AccelerateBackend(work_of(**options))
    backend.load()
    return backend


@pytest.fixture(scope="module")
def backend() -> AccelerateBackend:
    """The back end, ready, for all tests."""
    made = loaded()
    assert made.describe()["prefix_sharing"] == "exact"
    return made


def requests(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Request]:
    """One request each, of a task that is none of lm-eval's."""
    instances = [
        Instance(request_type=kind, doc={}, arguments=one, idx=0, metadata=("made_up", number, 1))
        for number, one in enumerate(arguments)
    ]
    return list(requests_of(instances, "1"))


def theirs(backend: AccelerateBackend, asked: Sequence[Request]) -> list[Any]:
    """What lm-eval's own back end answers with the same loaded model, one request at a time."""
    lm = backend._lm
    lm.batch_size_per_gpu = 1
    return getattr(lm, asked[0].kind)([request.instance for request in asked], disable_tqdm=True)


def answers_of(backend: AccelerateBackend, asked: Sequence[Request]) -> list[Response]:
    """What the back end answers to one piece, in the order of its requests."""
    found = dict(backend.stream([asked], known=()))
    return [found[request] for request in asked]


def assert_equal(responses: Sequence[Response], expected: Sequence[tuple[float, bool]]) -> None:
    """Within the tolerance, and the same greedy flags."""
    for response, (value, is_greedy) in zip(responses, expected, strict=True):
        assert response.loglikelihood == pytest.approx(value, abs=TOLERANCE)
        assert response.is_greedy == is_greedy


@pytest.fixture(scope="module")
def expected(backend: AccelerateBackend) -> dict[tuple[str, str], tuple[float, bool]]:
    """What lm-eval's own back end answers to each pair."""
    pairs = list(dict.fromkeys(pair for pairs in PAIRS.values() for pair in pairs))
    return dict(zip(pairs, theirs(backend, requests(LOGLIKELIHOOD, pairs)), strict=True))


@pytest.mark.parametrize("corner", PAIRS)
def test_every_answer_is_lm_evals(
    backend: AccelerateBackend, expected: dict[tuple[str, str], tuple[float, bool]], corner: str
) -> None:
    """Log-likelihoods within 1e-4 and greedy flags are those of lm-eval's own back end, whatever the requests share."""
    answers = answers_of(backend, requests(LOGLIKELIHOOD, PAIRS[corner]))

    assert_equal(answers, [expected[pair] for pair in PAIRS[corner]])


def test_all_corners_in_one_piece(
    backend: AccelerateBackend, expected: dict[tuple[str, str], tuple[float, bool]]
) -> None:
    """Requests of all kinds at once are answered so too, and fewer tokens are computed than asked for."""
    pairs = [pair for pairs in PAIRS.values() for pair in pairs]
    before = backend.counts()

    assert_equal(answers_of(backend, requests(LOGLIKELIHOOD, pairs)), [expected[pair] for pair in pairs])
    after = backend.counts()
    computed = after["computed_tokens"] - before["computed_tokens"]
    assert 3 * computed < after["asked_tokens"] - before["asked_tokens"]


@pytest.mark.parametrize("options", [{"max_length": 24}, {"add_bos_token": True}], ids=["cut from the left", "BOS"])
def test_lengths_and_first_tokens_are_lm_evals(options: dict[str, float]) -> None:
    """Where contexts are cut from the left, and where a first token is added, answers are lm-eval's own."""
    made = loaded(**options)
    few = [pair for pairs in PAIRS.values() for pair in pairs if len(pair[1]) < 30]
    asked = requests(LOGLIKELIHOOD, few)

    assert made.describe()["prefix_sharing"] == "exact"
    assert_equal(answers_of(made, asked), theirs(made, asked))


def test_windows_of_a_long_text_are_lm_evals() -> None:
    """loglikelihood_rolling, windows and all, is lm-eval's own to the bit."""
    made = loaded(max_length=48)
    asked = requests(LOGLIKELIHOOD_ROLLING, [(EXAMPLES * 2,), (EXAMPLES,)])

    assert [response.loglikelihood for response in answers_of(made, asked)] == theirs(made, asked)


def test_generated_text_is_lm_evals(backend: AccelerateBackend) -> None:
    """Texts end at the stop strings and lengths that lm-eval's own back end ends them at."""
    arguments = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    asked = requests(GENERATE, [(QUESTION, arguments), (f"{EXAMPLES}Question:", arguments)])

    assert [response.text for response in answers_of(backend, asked)] == theirs(backend, asked)


@pytest.fixture(scope="module")
def hellaswag() -> list[Request]:
    """Real requests: three documents, their examples drawn anew for each."""
    task = Task(name="hellaswag", data_path=str(staged_items("hellaswag")), limit=3, num_fewshot=1)
    [built] = build_tasks([task])
    return built.requests()


def test_a_piece_is_the_same_bits_always(backend: AccelerateBackend, hellaswag: list[Request]) -> None:
    """Pieces answered in another order, or after a restart, or each alone, get the same bits."""
    documents = sorted({request.key.doc_id for request in hellaswag})
    pieces = [[request for request in hellaswag if request.key.doc_id == document] for document in documents]
    first = dict(backend.stream(pieces, known=()))

    backwards = dict(backend.stream([piece[::-1] for piece in pieces[::-1]], known=()))
    again = dict(loaded().stream(pieces[1:2], known=()))

    assert backwards == first
    assert again == {request: first[request] for request in pieces[1]}


def test_an_interrupted_piece_goes_on_with_the_same_bits(backend: AccelerateBackend, hellaswag: list[Request]) -> None:
    """Of a piece that was cut off, only what the missing answers need is computed again, and they are the same bits."""
    before = backend.counts()["computed_tokens"]
    whole = list(backend.stream([hellaswag], known=()))
    cost = backend.counts()["computed_tokens"] - before
    known = {request.key for request, _ in whole[: len(whole) * 4 // 5]}

    rest = dict(backend.stream([hellaswag], known))

    assert {request.key for request in rest}.isdisjoint(known)
    assert rest == {request: response for request, response in whole if request.key not in known}
    assert backend.counts()["computed_tokens"] - before - cost < cost


def test_answers_come_as_they_are_known(backend: AccelerateBackend, hellaswag: list[Request]) -> None:
    """The first response comes before the piece is computed whole, so that it can be committed."""
    passes: list[int] = []
    hook = backend._lm.model.lm_head.register_forward_hook(lambda *_: passes.append(1))
    stream = backend.stream([hellaswag], known=())

    next(stream)
    at_first = len(passes)
    rest = list(stream)
    hook.remove()

    assert at_first < len(passes)
    assert len(rest) == len(hellaswag) - 1


def test_switched_off_it_is_lm_evals_own(hellaswag: list[Request]) -> None:
    """Without prefix sharing, answers are lm-eval's to the bit, and the back end says that it is switched off."""
    made = loaded(prefix_sharing=False)
    answers = [(response.loglikelihood, response.is_greedy) for response in answers_of(made, hellaswag[:2])]

    assert made.describe()["prefix_sharing"] == "it is switched off"
    assert answers == theirs(made, hellaswag[:2])


def test_the_switch_has_an_address() -> None:
    """Responses without prefix sharing are kept apart from those with it, which are where they always were."""
    task = Task(name="hellaswag")
    on, off = work_of(), work_of(prefix_sharing=False)

    assert on.task_address(task) != off.task_address(task)
    assert on.task_address(task) == replace(on, batch_size=7).task_address(task)
