"""The vLLM backend's responses equal those of lm-eval's own, with a real model in float32, in all corner cases."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby, product
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.generation_settings import GenerationSettings
from hpcq.core.attempts import Attempt, AttemptRecord, utc_now
from hpcq.core.work_records import MergeWork
from hpcq.evaluate.backends.transformers.backend import AccelerateBackend, generate_as_defined
from hpcq.evaluate.backends.vllm.backend import VllmBackend
from hpcq.evaluate.merge import merge
from hpcq.evaluate.provenance import segment_provenance
from hpcq.evaluate.request_set import build_request_set
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD, LOGLIKELIHOOD_ROLLING, Request
from hpcq.store import Response, SegmentWriter, read_results
from tests.vllm.conftest import CORNERS, DEFINITIONS, LIMIT, MAX_LENGTH, PROSE, QUESTION, answers, make_work, request

TOLERANCE = 1e-4


@pytest.fixture(scope="session")
def ours(backend: VllmBackend) -> list[Response]:
    """Our responses to the corner cases, from one call."""
    requests = [request(number, kind, arguments) for number, (kind, arguments) in enumerate(CORNERS)]
    kinds = dict.fromkeys(one.kind for one in requests)
    found = dict(backend.stream([[one for one in requests if one.kind == kind] for kind in kinds]))
    assert len(found) == len(requests)
    return [found[one] for one in requests]


@pytest.mark.parametrize("number", range(len(CORNERS)))
def test_every_response_equals_lm_evals(ours: list[Response], lm_eval_output: dict[str, Any], number: int) -> None:
    """Texts and greedy flags equal lm-eval's; log-likelihoods are within 1e-4."""
    answer, expected = ours[number], lm_eval_output["answers"][number]
    if isinstance(expected, str):
        assert answer.text == expected
    elif isinstance(expected, list):
        assert answer.loglikelihood == pytest.approx(expected[0], abs=TOLERANCE)
        assert answer.is_greedy == expected[1]
    else:
        assert answer.loglikelihood == pytest.approx(expected, abs=TOLERANCE)


def test_prefixes_are_shared(backend: VllmBackend, ours: list[Response]) -> None:
    """The responses compared above used shared prefixes: the self-check passed, and the cache had hits."""
    assert ours
    assert backend.describe()["prefix_sharing"] == "exact"
    counts = backend.token_counts()
    assert counts["computed_tokens"] < 3 / 4 * counts["asked_tokens"]


def test_removed_tokens_are_counted(backend: VllmBackend, ours: list[Response]) -> None:
    """Each response has the number of tokens by which its prompt was too long; windows of rolling ones lose none.

    Observed: prompts were cut from the left without a warning or a count.
    """
    expected = []
    for kind, (text, *rest) in CORNERS:
        if kind == LOGLIKELIHOOD_ROLLING:
            expected.append(0)
            continue
        [tokens] = backend._tokenizer.encode([text + rest[0] if kind == LOGLIKELIHOOD else text])
        room = MAX_LENGTH - (1 if kind == LOGLIKELIHOOD else rest[0]["max_gen_toks"])
        expected.append(max(0, len(tokens) - room))
    assert [response.cut_tokens for response in ours] == expected
    assert sum(count > 0 for count in expected) == 3


def test_greedy_is_the_default(backend: VllmBackend) -> None:
    """A task without sampling arguments gets greedy text, like one with do_sample = false.

    lm-eval 0.4.13 intends this, too, but lets vLLM sample at its default temperature of 1.0.
    """
    arguments = {"until": [], "max_gen_toks": 5}
    requests = [
        request(0, GENERATE, (PROSE, arguments)),
        request(1, GENERATE, (PROSE, {**arguments, "do_sample": False})),
    ]
    default, greedy = answers(backend, requests)
    assert default == greedy


def test_generation_settings_change_no_answer_of_either_backend(backend: VllmBackend) -> None:
    """Both backends give the same greedy text with the checkpoint's settings, and end it at its stop tokens.

    The checkpoint has a repetition penalty, sampling and an invalid value, which vLLM alone does not start with.
    Observed: one backend applied the repetition penalty to greedy answers, the other did not.
    """
    accelerate = AccelerateBackend(replace(backend._work, backend="accelerate", engine_options=()))
    accelerate.load()
    arguments = {"until": [], "max_gen_toks": 8, "do_sample": False}
    requests = [request(number, GENERATE, (text, arguments)) for number, text in enumerate((PROSE, QUESTION))]
    texts = [answer.text for answer in answers(backend, requests)]
    stop = backend._tokenizer.encode([texts[0]])[0][3]

    assert [answer.text for answer in answers(accelerate, requests)] == texts
    for one in (backend, accelerate):
        assert one.describe()["ignored_generation_settings"].startswith("max_new_tokens=3, num_return_sequences=-1")

    settings = GenerationSettings(stop_tokens=(2, stop))
    generate_as_defined(accelerate._lm, settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "_generation", settings)
        ended = [answer.text for answer in answers(backend, requests)]
    assert [answer.text for answer in answers(accelerate, requests)] == ended
    assert texts[0].startswith(ended[0])
    assert len(ended[0]) < len(texts[0])


def test_texts_of_both_backends_end_at_the_same_place(backend: VllmBackend) -> None:
    """Greedy texts are equal on both backends, for stop sequences, penalties, lengths, chats, and with reasoning.

    Of a text with reasoning, both return what follows its end, up to a stop sequence of the answer alone.
    """
    accelerate = AccelerateBackend(replace(backend._work, backend="accelerate", engine_options=()))
    accelerate.load()
    chat = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    settings: list[dict[str, Any]] = [
        {"until": ["."]},
        {"until": ["\n\n", " the"]},
        {"until": ["<|im_end|>", "no such text"], "repetition_penalty": 1.3},
        {"until": [], "max_gen_toks": 1},
    ]
    requests = [
        request(number, GENERATE, (text, {"max_gen_toks": 16, "do_sample": False, **one}))
        for number, (text, one) in enumerate(product((PROSE, chat), settings))
    ]
    plain = [_text(accelerate, one) for one in requests]
    end = plain[2][2:6]
    reasoning = [replace(requests[at], think_end_token=end) for at in (1, 5)]
    expected = [_text(accelerate, one) for one in reasoning]

    assert [_text(backend, one) for one in requests] == plain
    assert len(set(plain)) > len(settings)
    assert [_text(backend, one) for one in reasoning] == expected
    assert expected != [plain[1], plain[5]]


def _text(backend: AccelerateBackend | VllmBackend, one: Request) -> str:
    return str(answers(backend, [one])[0].text)


def test_sampled_text_depends_on_its_request_alone(backend: VllmBackend) -> None:
    """Sampled text does not depend on concurrent requests, and differs between requests."""
    arguments = {"until": [], "max_gen_toks": 5, "do_sample": True, "temperature": 1.0}
    requests = [request(number, GENERATE, (PROSE, arguments)) for number in range(3)]
    together = answers(backend, requests)
    assert answers(backend, requests[1:2]) == together[1:2]
    assert len(set(together)) == len(together)


def test_scores_of_whole_tasks_equal_lm_evals(
    backend: VllmBackend, lm_eval_output: dict[str, Any], tmp_path: Path
) -> None:
    """Every metric of every task, computed from the store, has lm-eval's own value."""
    work = make_work(tmp_path)
    questions = build_request_set(work.tasks, is_synthetic=False)
    tasks = groupby(questions.requests, key=lambda one: one.key.task)
    record = AttemptRecord(unit="evaluate", attempt=1, job_id="1", node="here", pid=1, start=utc_now())
    attempt = Attempt(tmp_path / "attempts", record)
    writer = SegmentWriter(
        Path(work.segments_path),
        attempt=1,
        addresses=questions.addresses(work),
        provenance=segment_provenance(work, attempt, backend.describe()),
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
        assert one.value == pytest.approx(lm_eval_output["results"][task][f"{metric},{filter_}"], rel=1e-6)
        assert one.n == LIMIT
