"""Sharing prefixes on the real engine: what comes from the cache is never read, and what is not exact is not used."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.usage.usage_lib import UsageContext

from hpcq.core.errors import SetupError, UserInputError, WorkFailed
from hpcq.evaluate.backends.vllm.backend import VllmBackend
from hpcq.evaluate.backends.vllm.continuations import Prompt
from hpcq.evaluate.backends.vllm.engine_loop import Flow, Job, sampling, told_of_itself
from hpcq.evaluate.backends.vllm.jobs import Sharing, generate_job, scores_of
from hpcq.evaluate.backends.vllm.self_check import TOLERANCES, probe
from hpcq.evaluate.backends.vllm.start import _smaller
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD
from tests.vllm.conftest import BLOCK, QUESTION, answers, make_work, request

SHARED = Sharing(least=BLOCK)
PLAIN = Sharing(least=BLOCK, why_not="to compare")


@pytest.fixture
def flow(backend: VllmBackend) -> Iterator[Flow]:
    """The engine with an empty cache, and nothing kept of what a test did to it."""
    backend._engine.reset_prefix_cache()
    yield Flow(backend._engine)
    backend._engine.reset_prefix_cache()


def run(flow: Flow, job: Job[object]) -> object:
    """One job's answer."""
    [answer] = flow.run(iter([job]), iter(()))
    return answer


def asked(prompt: Prompt) -> Job[object]:
    """A job of one prompt, answered with the engine's output."""
    [output] = yield [(prompt.tokens, sampling(prompt))]
    return output


def test_cached_tokens_are_not_read(flow: Flow) -> None:
    """Where the cache reaches into a continuation its rows are passed over, and the score is the whole prompt's."""
    tokens = tuple(range(1000, 1000 + 3 * BLOCK))
    context, continuation = tokens[: BLOCK + 5], tokens[BLOCK + 5 :]
    whole = Prompt(tokens=tokens, scored=len(context))
    run(flow, asked(whole))

    again = run(flow, asked(whole))
    assert again.num_cached_tokens == 2 * BLOCK > len(context)
    assert set(told_of_itself(whole, again)) == set(range(2 * BLOCK + 1, len(tokens)))

    pair = (context, continuation)
    shared, plain = run(flow, scores_of([pair], SHARED)), run(flow, scores_of([pair], PLAIN))
    assert shared[pair].loglikelihood == pytest.approx(plain[pair].loglikelihood, abs=1e-4)


def test_a_cache_that_is_not_exact_is_not_used(
    backend: VllmBackend, flow: Flow, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a cache that loses its content between passes the probe fails: all is computed in full, and that is said."""
    caches = backend._engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.kv_caches
    step = backend._engine.step

    def forgetful_step() -> list[object]:
        outputs = step()
        for cache in caches:
            cache.zero_()
        return outputs

    monkeypatch.setattr(backend._engine, "step", forgetful_step)
    with caplog.at_level(logging.WARNING):
        sharing = backend._find_sharing()
    assert sharing.why_not is not None
    assert "differ" in sharing.why_not
    assert f"Every prompt is computed in full: prefixes are not shared, because {sharing.why_not}" in caplog.text

    choices = [(tuple(range(100, 200)), rest) for rest in ((5,), (6, 7))]
    before = flow.cached_tokens
    plain = run(flow, scores_of(choices, sharing))
    monkeypatch.undo()
    assert flow.cached_tokens == before
    assert plain == run(flow, scores_of(choices, PLAIN))


def test_texts_read_the_cache_only_where_it_is_exact(backend: VllmBackend, flow: Flow) -> None:
    """Where prefixes are not shared, nothing is taken from the cache for a generated text either."""
    asked = request(0, GENERATE, (QUESTION, {"until": [], "max_gen_toks": 2}))
    for sharing in (SHARED, PLAIN):
        run(flow, generate_job(asked, backend._encoder, 1, sharing))
    assert flow.cached_tokens == 0
    run(flow, generate_job(asked, backend._encoder, 1, SHARED))
    assert flow.cached_tokens >= BLOCK


def test_an_engine_that_keeps_nothing_is_asked_the_plain_way(flow: Flow) -> None:
    """Contexts shorter than a block cannot be kept: the probe finds that nothing is shared, and says so."""
    found, _ = probe(flow, [((7, 8, 9), (10, 11))], SHARED, TOLERANCES["float32"])
    assert found.why_not == "the engine keeps no prefixes of this model"


def test_questions_that_begin_alike_come_from_the_cache(backend: VllmBackend, flow: Flow) -> None:
    """Questions after one block of examples compute that block once, whatever the order in which they are asked."""
    examples = QUESTION + " the mud\n\n" + QUESTION + " the mud\n\n"
    questions = [f"{examples}Question: What is {number} and {number}?\nAnswer:" for number in (3, 1, 4, 5, 9, 2)]
    pairs = backend._encoder.pairs([(question, f" {choice}") for question in questions for choice in "ABCD"])
    scores = run(flow, scores_of(pairs, SHARED))
    longest = max(len(context) for context, _ in pairs)
    assert len(scores) == len(pairs)
    assert flow.prompt_tokens - flow.cached_tokens < longest + len(questions) * 2 * BLOCK


def test_what_is_known_is_not_asked_again(backend: VllmBackend) -> None:
    """Of a piece only what is not known is answered, and of a piece that is known nothing is computed."""
    asked = [request(number, LOGLIKELIHOOD, (QUESTION, f" {number}")) for number in range(3)]
    before = backend.counts()
    assert list(backend.stream([asked], {one.key for one in asked})) == []
    assert backend.counts() == before
    assert [one for one, _ in backend.stream([asked], {asked[0].key, asked[2].key})] == [asked[1]]


def test_tokens_asked_for_are_those_of_each_request_in_full(backend: VllmBackend) -> None:
    """Four letters after one question ask for it four times, and compute it once at most; texts count in neither."""
    asked = [request(number, LOGLIKELIHOOD, (QUESTION, f" {letter}")) for number, letter in enumerate("ABCD")]
    [(context, _), *_] = backend._encoder.pairs([one.arguments for one in asked])
    before = backend.counts()
    answers(backend, asked)
    counts = {name: count - before[name] for name, count in backend.counts().items()}
    assert counts["asked_tokens"] == 4 * len(context)
    assert 0 < counts["computed_tokens"] <= len(context)
    before = backend.counts()
    answers(backend, [request(0, GENERATE, (QUESTION, {"until": [], "max_gen_toks": 2}))])
    assert backend.counts() == before


def test_a_continuation_without_room_for_a_context_is_refused(backend: VllmBackend) -> None:
    """A continuation longer than the model's length is refused in a sentence with the numbers."""
    with pytest.raises(
        WorkFailed, match=r"of 1 tokens of context and 50\d of continuation cannot be scored by a model of 38"
    ):
        answers(backend, [request(0, LOGLIKELIHOOD, ("a", " a" * 500))])


@pytest.mark.parametrize(
    ("share", "said", "expected"),
    [
        (0.25, {}, {"max_num_seqs": 64, "max_num_batched_tokens": 1024}),
        (0.25, {"max_num_seqs": 12, "block_size": 32}, {"max_num_seqs": 3, "max_num_batched_tokens": 1024}),
        (0.25, {"max_num_batched_tokens": 80}, {"max_num_seqs": 20, "max_num_batched_tokens": 20}),
        (0.0, {"block_size": 32}, {"max_num_seqs": 1, "max_num_batched_tokens": 32}),
    ],
)
def test_a_share_of_the_batch_is_a_share_of_what_the_engine_computes_at_once(
    share: float, said: dict[str, int], expected: dict[str, int]
) -> None:
    """After an attempt that ran out of memory fewer prompts and fewer tokens go through the engine at once."""
    assert _smaller(EngineArgs, UsageContext.LLM_CLASS, share, said) == expected


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    """An option that neither vLLM nor we have is refused with those there are."""
    with pytest.raises(UserInputError, match="vllm back end has no 'max_lenght'; it has add_bos_token, max_length"):
        VllmBackend(make_work(tmp_path, options=(("max_lenght", 1),)))
    with pytest.raises(
        UserInputError, match=r"evaluate\.engine: the vllm back end has no 'max_length'; it has block_size"
    ):
        VllmBackend(make_work(tmp_path, engine=(("max_length", 1),)))


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """On a machine without GPUs 'cuda' is refused, with the cure."""
    with pytest.raises(SetupError, match=r"there is no GPU here\. Use 'auto'"):
        VllmBackend(make_work(tmp_path, device="cuda")).load()
