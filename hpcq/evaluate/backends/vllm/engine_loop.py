"""Loop that keeps vLLM's engine (0.32) busy with jobs, and the log-probabilities in its outputs."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from hpcq.evaluate.backends.vllm.continuations import Prompt, TokenLogprob

Result = TypeVar("Result")

# (tokens, vLLM's SamplingParams)
EngineRequest = tuple[Sequence[int], Any]
Job = Generator[list[EngineRequest], list[Any], Result]
"""Yields requests, receives vLLM's outputs in the same order once all are complete, may repeat, returns its result."""


def sampling_params(prompt: Prompt) -> Any:
    """vLLM's `SamplingParams` for a prompt."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        detokenize=False,
        # 1 includes the likeliest token. Ranks would be wrong for ties, which are common in bf16.
        prompt_logprobs=1 if prompt.needs_prompt_logprobs else None,
        logprob_token_ids=list(prompt.next_tokens) or None,
        # By default vLLM skips the prefix cache for prompts with prompt_logprobs.
        skip_reading_prefix_cache=not prompt.use_prefix_cache,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def prompt_logprobs(prompt: Prompt, output: Any) -> dict[int, TokenLogprob]:
    """Return the log-probabilities of the prompt's scored tokens that vLLM computed, by position.

    The forward pass of a token gives the log-probability of the next one. There is no forward pass for cached tokens:
    for those vLLM returns uninitialized memory or, with its second model runner, no row (0.32). A preempted prompt may
    have read more tokens from the cache when it was resumed than vLLM reports. So its results are not used if it was
    allowed to read the cache.
    """
    if not prompt.needs_prompt_logprobs or (prompt.use_prefix_cache and output.metrics.num_preemptions):
        return {}
    length = len(prompt.tokens)
    offset = len(output.prompt_logprobs) - length  # not zero if there are no rows for cached tokens
    found = {}
    for position in range(max(prompt.first_scored, (output.num_cached_tokens or 0) + 1), length):
        row = output.prompt_logprobs[position + offset]
        if prompt.tokens[position] in row:
            best = max(entry.logprob for entry in row.values())
            found[position] = TokenLogprob(row[prompt.tokens[position]].logprob, best)
    return found


def next_logprobs(prompt: Prompt, output: Any) -> dict[int, TokenLogprob]:
    """Return the log-probabilities of the prompt's `next_tokens`, by token."""
    if not prompt.next_tokens:
        return {}
    row = output.outputs[0].logprobs[0]
    best = max(entry.logprob for entry in row.values())  # includes the generated token, which is the likeliest
    return {token: TokenLogprob(row[token].logprob, best) for token in prompt.next_tokens}


def has_nan_logits(output: Any) -> bool:
    """Return whether a logit of a generated token was NaN; the engine counts them (`VLLM_COMPUTE_NANS_IN_LOGITS`)."""
    return bool(output.metrics.is_corrupted)


@dataclass(kw_only=True, eq=False)
class _JobQueue:
    """Jobs of one kind.

    Attributes:
        jobs: Those that have not started.
        is_scoring: Whether their prompts count in `EngineLoop.prompt_tokens`.
        in_flight: Number of their requests in the engine.
        has_jobs: Whether `jobs` may have more.
    """

    jobs: Iterator[Job[Any]]
    is_scoring: bool
    in_flight: int = 0
    has_jobs: bool = True


@dataclass(kw_only=True, eq=False)
class _InFlight:
    """A started job and the outputs of its latest requests.

    Attributes:
        job: The job.
        queue: Where the job came from.
        outputs: By request; None until complete.
        pending: Number of incomplete requests.
    """

    job: Job[Any]
    queue: _JobQueue
    outputs: list[Any]
    pending: int


class EngineLoop:
    """Runs jobs on an engine, with more requests queued than the engine can batch, until no job is left.

    Not thread-safe: one thread runs it.

    Attributes:
        prompt_tokens: Tokens of all scoring prompts so far.
        cached_tokens: How many of these were read from the prefix cache.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._max_num_seqs = engine.vllm_config.scheduler_config.max_num_seqs
        self._request_ids = count()
        self._requests: dict[str, tuple[_InFlight, int]] = {}
        self.prompt_tokens = 0
        self.cached_tokens = 0

    def run(self, scoring: Iterator[Job[Result]], generating: Iterator[Job[Result]]) -> Iterator[Result]:
        """Yield every job's result as it completes.

        Scoring jobs start in their order, so that shared prefixes are still in the cache when they are needed again.
        Generating jobs run at the same time, which costs little: a forward pass over prompts has spare rows for
        decoding.
        """
        score, generate = _JobQueue(jobs=scoring, is_scoring=True), _JobQueue(jobs=generating, is_scoring=False)
        full = 2 * self._max_num_seqs
        try:
            while True:
                yield from self._submit(score, full)
                yield from self._submit(generate, max(1, self._max_num_seqs // 2) if score.has_jobs else full)
                if not self._requests:
                    return
                for output in self._engine.step():
                    yield from self._complete(output)
        finally:
            self._engine.abort_request(list(self._requests))
            self._requests.clear()

    def _submit(self, queue: _JobQueue, max_in_flight: int) -> Iterator[Any]:
        while queue.has_jobs and queue.in_flight < max_in_flight:
            job = next(queue.jobs, None)
            if job is None:
                queue.has_jobs = False
            else:
                yield from self._advance(job, queue, None)

    def _advance(self, job: Job[Any], queue: _JobQueue, outputs: list[Any] | None) -> Iterator[Any]:
        try:
            # A generator that has not started accepts only None, which the type of `send` does not allow.
            requests = next(job) if outputs is None else job.send(outputs)
        except StopIteration as finished:
            yield finished.value
            return
        in_flight = _InFlight(job=job, queue=queue, outputs=[None] * len(requests), pending=len(requests))
        queue.in_flight += len(requests)
        for index, (tokens, parameters) in enumerate(requests):
            request_id = str(next(self._request_ids))
            self._requests[request_id] = (in_flight, index)
            [rendered] = self._engine.renderer.render_cmpl([{"prompt_token_ids": list(tokens)}])
            self._engine.add_request(request_id, rendered, parameters)

    def _complete(self, output: Any) -> Iterator[Any]:
        if not output.finished:
            return
        in_flight, index = self._requests.pop(output.request_id)
        if in_flight.queue.is_scoring:
            self.prompt_tokens += len(output.prompt_token_ids)
            self.cached_tokens += output.num_cached_tokens or 0
        in_flight.outputs[index] = output
        in_flight.pending -= 1
        in_flight.queue.in_flight -= 1
        if not in_flight.pending:
            yield from self._advance(in_flight.job, in_flight.queue, in_flight.outputs)
