"""Sharing prefixes on the real engine: what comes from the cache is never read, and what is not exact is not used."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcq.errors import EnvironmentFault, UserInputError, WorkFailed
from hpcq.evaluate.requests import LOGLIKELIHOOD
from hpcq.evaluate.vllm import VllmBackend
from hpcq.evaluate.vllm_engine import Flow, Job, sampling, told_of_itself
from hpcq.evaluate.vllm_families import Prompt
from hpcq.evaluate.vllm_jobs import Sharing, scores_of
from hpcq.evaluate.vllm_probe import TOLERANCES, probe
from tests.vllm.conftest import BLOCK, QUESTION, make_work, request

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
    assert flow.asked_tokens - flow.cached_tokens < longest + len(questions) * 2 * BLOCK


def test_a_continuation_without_room_for_a_context_is_refused(backend: VllmBackend) -> None:
    """A continuation longer than the model's length is refused in a sentence with the numbers."""
    with pytest.raises(
        WorkFailed, match=r"of 1 tokens of context and 50\d of continuation cannot be scored by a model of 38"
    ):
        backend.answer([request(0, LOGLIKELIHOOD, ("a", " a" * 500))])


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    """An option that neither vLLM nor we have is refused with those there are."""
    with pytest.raises(UserInputError, match="vllm back end has no 'max_lenght'; it has add_bos_token, max_length"):
        VllmBackend(make_work(tmp_path, options=(("max_lenght", 1),)))


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """On a machine without GPUs 'cuda' is refused, with the cure."""
    with pytest.raises(EnvironmentFault, match=r"there is no GPU here\. Use 'auto'"):
        VllmBackend(make_work(tmp_path, device="cuda")).load()
