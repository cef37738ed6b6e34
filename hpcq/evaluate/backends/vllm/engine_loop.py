"""vLLM's engine (0.32): fed without a pause, and what its outputs tell of a prompt.

Knows vLLM. Must not know requests, texts or tasks.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from hpcq.evaluate.backends.vllm.continuations import Prompt, Told

Answer = TypeVar("Answer")

# (tokens, vLLM's SamplingParams)
Asked = tuple[Sequence[int], Any]
Job = Generator[list[Asked], list[Any], Answer]
"""Yields what to ask, is sent vLLM's outputs in that order once all are there, may ask again, returns its answer."""


def sampling(prompt: Prompt) -> Any:
    """How vLLM is told what a prompt asks."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        detokenize=False,
        # With the likeliest token: ranks would count equal logits, which are common in bf16, as likelier.
        prompt_logprobs=1 if prompt.asks_of_itself else None,
        logprob_token_ids=list(prompt.next_tokens) or None,
        # Unless told so, vLLM computes prompts that ask for log-probabilities in full.
        skip_reading_prefix_cache=not prompt.shares,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def told_of_itself(prompt: Prompt, output: Any) -> dict[int, Told]:
    """What was computed of the prompt's own tokens that were to be told, by position.

    A token is told by the pass over the one before it. What came from the cache was not passed over: vLLM then hands
    out memory that nobody wrote to, or, in its second model runner, nothing at all (0.32). A prompt that was preempted
    may have found more in the cache when it came back than is reported; so nothing of it is read if it looked there.
    """
    if not prompt.asks_of_itself or (prompt.shares and output.metrics.num_preemptions):
        return {}
    length = len(prompt.tokens)
    beyond = len(output.prompt_logprobs) - length  # not zero where nothing is handed out for cached tokens
    found = {}
    for position in range(max(prompt.scored, (output.num_cached_tokens or 0) + 1), length):
        row = output.prompt_logprobs[position + beyond]
        if prompt.tokens[position] in row:
            best = max(one.logprob for one in row.values())
            found[position] = Told(row[prompt.tokens[position]].logprob, best)
    return found


def told_of_nexts(prompt: Prompt, output: Any) -> dict[int, Told]:
    """What was computed of the tokens that might follow the prompt."""
    if not prompt.next_tokens:
        return {}
    row = output.outputs[0].logprobs[0]
    best = max(one.logprob for one in row.values())  # the generated token, the likeliest of all, is among them
    return {token: Told(row[token].logprob, best) for token in prompt.next_tokens}


@dataclass(kw_only=True, eq=False)
class _Lane:
    """Jobs of a kind. flying: their prompts in the engine; is_open: whether jobs may be left."""

    jobs: Iterator[Job[Any]]
    is_scoring: bool
    flying: int = 0
    is_open: bool = True


@dataclass(kw_only=True, eq=False)
class _Flight:
    """A job under way, and the outputs that are there of what it asked last."""

    job: Job[Any]
    lane: _Lane
    outputs: list[Any]
    missing: int


class Flow:
    """Jobs through the engine, which always has more to do than it can hold, until none is left.

    prompt_tokens, cached_tokens: of all prompts of scoring so far, and how many of them came from the cache.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._rows = engine.vllm_config.scheduler_config.max_num_seqs
        self._numbers = count()
        self._under_way: dict[str, tuple[_Flight, int]] = {}
        self.prompt_tokens = 0
        self.cached_tokens = 0

    def run(self, scoring: Iterator[Job[Answer]], generating: Iterator[Job[Answer]]) -> Iterator[Answer]:
        """Every job's answer as it comes.

        Scoring goes in the order of its jobs, so that what they share is still kept when it is wanted again. Generating
        goes beside it, where it costs little: a pass that reads prompts has room for a row that writes.
        """
        score, generate = _Lane(jobs=scoring, is_scoring=True), _Lane(jobs=generating, is_scoring=False)
        try:
            while True:
                yield from self._board(score, 2 * self._rows)
                yield from self._board(generate, max(1, self._rows // 2) if score.is_open else 2 * self._rows)
                if not self._under_way:
                    return
                for output in self._engine.step():
                    yield from self._land(output)
        finally:
            self._engine.abort_request(list(self._under_way))
            self._under_way.clear()

    def _board(self, lane: _Lane, most: int) -> Iterator[Any]:
        while lane.is_open and lane.flying < most:
            job = next(lane.jobs, None)
            if job is None:
                lane.is_open = False
            else:
                yield from self._go_on(job, lane, None)

    def _go_on(self, job: Job[Any], lane: _Lane, outputs: list[Any] | None) -> Iterator[Any]:
        try:
            # A generator that has not begun takes None alone, which is what send declares for no other.
            asked = next(job) if outputs is None else job.send(outputs)
        except StopIteration as finished:
            yield finished.value
            return
        flight = _Flight(job=job, lane=lane, outputs=[None] * len(asked), missing=len(asked))
        lane.flying += len(asked)
        for index, (tokens, parameters) in enumerate(asked):
            name = str(next(self._numbers))
            self._under_way[name] = (flight, index)
            [rendered] = self._engine.renderer.render_cmpl([{"prompt_token_ids": list(tokens)}])
            self._engine.add_request(name, rendered, parameters)

    def _land(self, output: Any) -> Iterator[Any]:
        if not output.finished:
            return
        flight, index = self._under_way.pop(output.request_id)
        if flight.lane.is_scoring:
            self.prompt_tokens += len(output.prompt_token_ids)
            self.cached_tokens += output.num_cached_tokens or 0
        flight.outputs[index] = output
        flight.missing -= 1
        flight.lane.flying -= 1
        if not flight.missing:
            yield from self._go_on(flight.job, flight.lane, flight.outputs)
