"""Prefix sharing on the real engine: no log-probability of a cached token is read, and an inexact cache is not used."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.usage.usage_lib import UsageContext

from hpcq.core.errors import SetupError, UserInputError, WorkerError
from hpcq.evaluate.backends.vllm.backend import VllmBackend
from hpcq.evaluate.backends.vllm.continuations import Prompt
from hpcq.evaluate.backends.vllm.engine import _reduced_batch
from hpcq.evaluate.backends.vllm.engine_loop import EngineLoop, Job, prompt_logprobs, sampling_params
from hpcq.evaluate.backends.vllm.engine_requests import PrefixSharing, generate_job, score_pairs
from hpcq.evaluate.backends.vllm.self_check import check_sharing
from hpcq.evaluate.prefix.agreement import EXACT, Agreement, largest_rounding
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD
from tests.vllm.conftest import ALIKE, BLOCK, PROSE, QUESTION, answers, make_work, request

SHARED = PrefixSharing(min_tokens=BLOCK)
PLAIN = PrefixSharing(min_tokens=BLOCK, disabled_reason="for comparison")


@pytest.fixture
def engine_loop(backend: VllmBackend) -> Iterator[EngineLoop]:
    """A loop on the engine with an empty cache; the cache is cleared after the test."""
    backend._engine.reset_prefix_cache()
    yield EngineLoop(backend._engine)
    backend._engine.reset_prefix_cache()


def run(engine_loop: EngineLoop, job: Job[object]) -> object:
    """Run one job and return its result."""
    [result] = engine_loop.run(iter([job]), iter(()))
    return result


def prompt_job(prompt: Prompt) -> Job[object]:
    """A job with one prompt, whose result is the engine's output."""
    [output] = yield [(prompt.tokens, sampling_params(prompt))]
    return output


def test_cached_tokens_are_not_read(engine_loop: EngineLoop) -> None:
    """If the cache covers part of a continuation, those rows are skipped, and the score is that of the whole prompt."""
    tokens = tuple(range(1000, 1000 + 3 * BLOCK))
    context, continuation = tokens[: BLOCK + 5], tokens[BLOCK + 5 :]
    whole = Prompt(tokens=tokens, first_scored=len(context))
    run(engine_loop, prompt_job(whole))

    repeated = run(engine_loop, prompt_job(whole))
    assert repeated.num_cached_tokens == 2 * BLOCK > len(context)
    assert set(prompt_logprobs(whole, repeated)) == set(range(2 * BLOCK + 1, len(tokens)))

    pair = (context, continuation)
    shared, plain = run(engine_loop, score_pairs([pair], SHARED)), run(engine_loop, score_pairs([pair], PLAIN))
    assert shared[pair].loglikelihood == pytest.approx(plain[pair].loglikelihood, abs=1e-4)


def test_a_cache_that_is_not_exact_is_not_used(
    backend: VllmBackend, engine_loop: EngineLoop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a cache that loses its content between steps the self-check fails: sharing is disabled with a warning."""
    caches = backend._engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.kv_caches
    step = backend._engine.step

    def forgetful_step() -> list[object]:
        outputs = step()
        for cache in caches:
            cache.zero_()
        return outputs

    monkeypatch.setattr(backend, "_agreement", Agreement())
    monkeypatch.setattr(backend._engine, "step", forgetful_step)
    with caplog.at_level(logging.WARNING):
        sharing = backend._check_prefix_sharing()
    assert backend._agreement.difference == 0, "a sharing that is not used has no influence on the tolerance"
    assert sharing.disabled_reason is not None
    assert "differ" in sharing.disabled_reason
    assert f"Prefix sharing is disabled: {sharing.disabled_reason}. Every prompt is computed in full." in caplog.text

    choices = [(tuple(range(100, 200)), rest) for rest in ((5,), (6, 7))]
    before = engine_loop.cached_tokens
    plain = run(engine_loop, score_pairs(choices, sharing))
    monkeypatch.undo()
    assert engine_loop.cached_tokens == before
    assert plain == run(engine_loop, score_pairs(choices, PLAIN))


def test_generation_reads_the_cache_only_if_it_is_exact(backend: VllmBackend, engine_loop: EngineLoop) -> None:
    """If prefixes are not shared, generation does not read the cache either."""
    generation = request(0, GENERATE, (QUESTION, {"until": [], "max_gen_toks": 2}))
    for sharing in (SHARED, PLAIN):
        run(engine_loop, generate_job(generation, backend._tokenizer, backend._work, sharing))
    assert engine_loop.cached_tokens == 0
    run(engine_loop, generate_job(generation, backend._tokenizer, backend._work, SHARED))
    assert engine_loop.cached_tokens >= BLOCK


def test_sharing_is_checked_with_the_runs_requests(backend: VllmBackend) -> None:
    """Long requests of the run are compared too, and "exact" is written only of a difference up to EXACT.

    The check leaves nothing in the prefix cache. Requests whose continuations were in it would be computed twice.
    """
    context = f"{QUESTION} the mud\n\n" * 3 + QUESTION
    texts = [(context, continuation) for continuation in (ALIKE, PROSE)]
    chunk = [request(number, LOGLIKELIHOOD, text) for number, text in enumerate(texts)]
    before = backend.token_counts()

    backend.check(chunk)

    facts = backend.describe()
    difference = facts["prefix_sharing_difference"]
    assert facts["prefix_sharing"] == ("exact" if difference <= EXACT else "within rounding")
    assert difference <= facts["prefix_sharing_tolerance"] <= largest_rounding("float32")
    assert facts["batch_difference"] <= largest_rounding("float32")
    assert backend.token_counts() == before
    answers(backend, chunk)
    [(context_tokens, _), _] = [encoded.pair for encoded in backend._tokenizer.encode_pairs(texts)]
    assert backend.token_counts()["computed_tokens"] - before["computed_tokens"] < 2 * len(context_tokens)


def test_without_any_cached_tokens_sharing_is_disabled(engine_loop: EngineLoop) -> None:
    """Contexts shorter than a block are not cached: the self-check disables sharing with that reason."""
    found, _ = check_sharing(engine_loop, [((7, 8, 9), (10, 11))], SHARED, "float32")
    assert found.disabled_reason == "the engine does not cache prefixes of this model"


def test_common_prefixes_are_read_from_the_cache(backend: VllmBackend, engine_loop: EngineLoop) -> None:
    """Questions after the same examples compute the examples once, independent of the order of the requests."""
    examples = QUESTION + " the mud\n\n" + QUESTION + " the mud\n\n"
    questions = [f"{examples}Question: What is {number} and {number}?\nAnswer:" for number in (3, 1, 4, 5, 9, 2)]
    texts = [(question, f" {choice}") for question in questions for choice in "ABCD"]
    pairs = [encoded.pair for encoded in backend._tokenizer.encode_pairs(texts)]
    scores = run(engine_loop, score_pairs(pairs, SHARED))
    longest = max(len(context) for context, _ in pairs)
    assert len(scores) == len(pairs)
    assert engine_loop.prompt_tokens - engine_loop.cached_tokens < longest + len(questions) * 2 * BLOCK


def test_answered_requests_are_not_computed_again(backend: VllmBackend) -> None:
    """Only the missing requests of a chunk are answered; for a fully answered chunk nothing is computed."""
    chunk = [request(number, LOGLIKELIHOOD, (QUESTION, f" {number}")) for number in range(3)]
    before = backend.token_counts()
    assert list(backend.stream([chunk], {one.key for one in chunk})) == []
    assert backend.token_counts() == before
    assert [one for one, _ in backend.stream([chunk], {chunk[0].key, chunk[2].key})] == [chunk[1]]


def test_asked_tokens_count_each_request_in_full(backend: VllmBackend) -> None:
    """Four letters after one question count it four times and compute it at most once; generation does not count."""
    chunk = [request(number, LOGLIKELIHOOD, (QUESTION, f" {letter}")) for number, letter in enumerate("ABCD")]
    context, _ = backend._tokenizer.encode_pairs([one.arguments for one in chunk])[0].pair
    before = backend.token_counts()
    answers(backend, chunk)
    counts = {name: count - before[name] for name, count in backend.token_counts().items()}
    assert counts["asked_tokens"] == 4 * len(context)
    assert 0 < counts["computed_tokens"] <= len(context)
    before = backend.token_counts()
    answers(backend, [request(0, GENERATE, (QUESTION, {"until": [], "max_gen_toks": 2}))])
    assert backend.token_counts() == before


def test_a_continuation_without_room_for_a_context_is_refused(backend: VllmBackend) -> None:
    """A continuation longer than the maximum length is refused with the numbers of tokens."""
    with pytest.raises(
        WorkerError, match=r"with 1 context tokens and 50\d continuation tokens cannot be scored with a maximum length"
    ):
        answers(backend, [request(0, LOGLIKELIHOOD, ("a", " a" * 500))])


@pytest.mark.parametrize(
    ("share", "settings", "expected"),
    [
        (0.25, {}, {"max_num_seqs": 64, "max_num_batched_tokens": 1024}),
        (0.25, {"max_num_seqs": 12, "block_size": 32}, {"max_num_seqs": 3, "max_num_batched_tokens": 1024}),
        (0.25, {"max_num_batched_tokens": 80}, {"max_num_seqs": 20, "max_num_batched_tokens": 20}),
        (0.0, {"block_size": 32}, {"max_num_seqs": 1, "max_num_batched_tokens": 32}),
    ],
)
def test_a_reduced_batch_has_fewer_prompts_and_tokens(
    share: float, settings: dict[str, int], expected: dict[str, int]
) -> None:
    """After an attempt that ran out of memory, the engine batches fewer prompts and fewer tokens."""
    assert _reduced_batch(EngineArgs, UsageContext.LLM_CLASS, share, settings) == expected


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    """An unknown option is refused with the list of the known ones."""
    message = r"evaluate\.options: the vllm backend has no option 'max_lenght'; valid options are add_"
    with pytest.raises(UserInputError, match=message):
        VllmBackend(make_work(tmp_path, options=(("max_lenght", 1),)))
    message = r"evaluate\.engine: the vllm backend has no option 'max_length'; valid options are block_size"
    with pytest.raises(UserInputError, match=message):
        VllmBackend(make_work(tmp_path, engine_options=(("max_length", 1),)))


def test_a_missing_device_is_refused(tmp_path: Path) -> None:
    """Without a GPU, 'cuda' is refused with the fix."""
    with pytest.raises(SetupError, match=r"planned on GPUs, but vLLM finds none here\. Remove evaluate\.device"):
        VllmBackend(make_work(tmp_path, device="cuda")).load()
