"""Conversion of lm-eval requests to vLLM requests, and of vLLM's outputs to responses."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from hpcq.core.errors import WorkerError
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import EvaluateWork
from hpcq.evaluate.backends.vllm.continuations import ContinuationGroup, Score
from hpcq.evaluate.backends.vllm.engine_loop import (
    EngineRequest,
    Job,
    has_nan_logits,
    next_logprobs,
    prompt_logprobs,
    sampling_params,
)
from hpcq.evaluate.backends.vllm.tokenizer import Encoded, LmEvalTokenizer, Pair
from hpcq.evaluate.requests import LOGLIKELIHOOD_ROLLING, Request
from hpcq.evaluate.sampling import seed_of
from hpcq.store import Response
from hpcq.verify.responses import not_finite_error

Scores = dict[Pair, Score]


class JobResult(NamedTuple):
    """Result of a job.

    Attributes:
        rows: Requests with their responses.
        asked_tokens: Tokens of the log-likelihood requests, each counted in full except for its last token.
    """

    rows: list[tuple[Request, Response]]
    asked_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class PrefixSharing:
    """Whether prompts share prefixes through the prefix cache.

    Attributes:
        min_tokens: Length of the shortest prefix that the cache can hold, in tokens.
        disabled_reason: Why prefixes are not shared; None if they are.
    """

    min_tokens: int
    disabled_reason: str | None = None


def score_jobs(
    requests: Sequence[Request], tokenizer: LmEvalTokenizer, sharing: PrefixSharing
) -> Iterator[Job[JobResult]]:
    """Yield the jobs of a chunk of log-likelihood requests of one kind: one job per context, sorted by prefix."""
    if requests[0].kind == LOGLIKELIHOOD_ROLLING:
        for request in requests:
            yield _rolling_job(request, tokenizer.rolling_windows(request.arguments[0]), sharing)
        return
    encoded = tokenizer.encode_pairs([request.arguments for request in requests])
    # Sorting by tokens is a depth-first walk of the prefix tree.
    ordered = sorted(zip(encoded, requests, strict=True), key=lambda member: (member[0].pair, member[1].key))
    for _, members in groupby(ordered, key=lambda member: member[0].pair[0]):
        yield _group_job(list(members), sharing)


def generate_job(
    request: Request,
    tokenizer: LmEvalTokenizer,
    work: EvaluateWork,
    sharing: PrefixSharing,
    *,
    stop_tokens: Sequence[int] = (),
) -> Job[JobResult]:
    """Generate the text of a request with the request's own arguments.

    Args:
        request: The request.
        tokenizer: The model's tokenizer.
        work: The evaluation.
        sharing: Whether the prompt may come from the prefix cache.
        stop_tokens: Ids of tokens that end the text, in addition to the tokenizer's end token.

    Raises:
        NotFiniteError: The logits of a token were NaN.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    text, arguments = request.arguments
    settings, until, max_new_tokens = tokenizer.generation_settings(arguments)
    # A seed per request: sampled text must not depend on earlier or concurrent requests.
    settings.setdefault("seed", seed_of(request, work.seed))
    parameters = SamplingParams(
        max_tokens=max_new_tokens,
        stop=until if request.think_end_token is None else [tokenizer.end_text],
        stop_token_ids=list(stop_tokens),
        skip_reading_prefix_cache=sharing.disabled_reason is not None,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **settings,
    )
    tokens, cut = tokenizer.encode_prompt(text, max_new_tokens)
    [output] = yield [(tokens, parameters)]
    if has_nan_logits(output):
        problem = "the logits of its text are NaN"
        raise not_finite_error(request.key, problem, model=work.checkpoint_path, dtype=work.dtype)
    generated = tokenizer.answer_of(output.outputs[0].text, until, request.think_end_token)
    return JobResult([(request, Response(text=generated, cut_tokens=cut))])


def _group_job(members: Sequence[tuple[Encoded, Request]], sharing: PrefixSharing) -> Job[JobResult]:
    pairs = [encoded.pair for encoded, _ in members]
    scores = yield from score_pairs(pairs, sharing)
    rows = [(request, Response(*scores[encoded.pair], cut_tokens=encoded.cut_tokens)) for encoded, request in members]
    return JobResult(rows, _asked_tokens(pairs))


def _rolling_job(request: Request, windows: Sequence[Pair], sharing: PrefixSharing) -> Job[JobResult]:
    scores = yield from score_pairs(windows, sharing)
    response = Response(loglikelihood=float(sum(scores[pair].loglikelihood for pair in windows)), cut_tokens=0)
    return JobResult([(request, response)], _asked_tokens(windows))


def score_pairs(pairs: Iterable[Pair], sharing: PrefixSharing) -> Generator[list[EngineRequest], list[Any], Scores]:
    """Return the score of each pair. Pairs with missing log-probabilities are requested a second time, in full.

    Raises:
        WorkerError: vLLM returned no log-probability of a token that it had to compute.
    """
    distinct = sorted(set(pairs))
    groups = {
        context: ContinuationGroup(
            context,
            [continuation for _, continuation in members],
            min_shared_tokens=sharing.min_tokens,
            is_unshared=sharing.disabled_reason is not None,
        )
        for context, members in groupby(distinct, key=lambda pair: pair[0])
    }
    requested = [(group, prompt) for group in groups.values() for prompt in group.prompts()]
    while requested:
        outputs = yield [(prompt.tokens, sampling_params(prompt)) for _, prompt in requested]
        for (group, prompt), output in zip(requested, outputs, strict=True):
            group.record(prompt, prompt_logprobs(prompt, output), next_logprobs(prompt, output))
        missing = [(group, prompt) for group in groups.values() for prompt in group.missing_prompts()]
        if any(member in requested for member in missing):
            raise WorkerError("vLLM returned no log-probability for some tokens of a prompt that it computed in full.")
        requested = missing
    return {(context, rest): _require(groups[context].score(rest)) for context, rest in distinct}


def _asked_tokens(pairs: Iterable[Pair]) -> int:
    return sum(len(context) + len(rest) - 1 for context, rest in pairs)


def _require(score: Score | None) -> Score:
    if score is None:
        raise WorkerError("The score of a continuation is missing although all of its log-probabilities were returned.")
    return score
