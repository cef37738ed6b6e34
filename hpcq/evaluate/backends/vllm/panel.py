"""Windows of the fidelity panel on vLLM (0.32): prompts with the log-probabilities of their most probable tokens.

vLLM computes them as a log-softmax in float32 of the model's logits (`logprobs_mode` "raw_logprobs", the default), also
where it reads a prompt in several chunks. The prefix cache is not read: there are no logits of cached tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcq.core.errors import UserInputError, WorkerError
from hpcq.evaluate.backends.vllm.engine_loop import Job
from hpcq.evaluate.backends.vllm.engine_requests import JobResult
from hpcq.evaluate.backends.vllm.tokenizer import LmEvalTokenizer
from hpcq.evaluate.panel_requests import window_tokens
from hpcq.evaluate.requests import Request
from hpcq.store import Response, TopLogprobs


def window_job(request: Request, tokenizer: LmEvalTokenizer, *, max_length: int, vocabulary: int) -> Job[JobResult]:
    """Read one window: yield its prompt, receive vLLM's output, and return the response.

    Args:
        request: The request.
        tokenizer: The model's tokenizer.
        max_length: Maximum number of prompt and generated tokens together; vLLM always generates a token.
        vocabulary: Number of tokens that the model knows.

    Raises:
        WorkerError: The text has too few tokens, or vLLM returned something else than the requested numbers.
        UserInputError: The model reads fewer tokens than a window has.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    text, length, top = request.arguments
    if length >= max_length:
        raise UserInputError(
            f"fidelity.window: {length} tokens and one generated token exceed the {max_length} that the model reads:"
            f" use a window of {max_length - 1} or less."
        )
    top = min(int(top), vocabulary)
    [found] = tokenizer.encode([text])
    tokens = window_tokens(request, found)
    parameters = SamplingParams(
        temperature=0.0,
        max_tokens=1,
        detokenize=False,
        prompt_logprobs=top,
        flat_logprobs=True,
        skip_reading_prefix_cache=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    [output] = yield [(tokens, parameters)]
    window = _window(output.prompt_logprobs, tokens, top)
    response = Response(loglikelihood=window.loglikelihood, cut_tokens=0, logprobs=window.packed())
    return JobResult([(request, response)], len(tokens))


def _window(flat: Any, tokens: list[int], top: int) -> TopLogprobs:
    """Return the window from vLLM's `FlatLogprobs`.

    It has no entry for the first token, and `top` + 1 entries for each of the others: first the token itself, then the
    most probable tokens at its position.

    Args:
        flat: The `FlatLogprobs` of the prompt.
        tokens: Token ids of the prompt.
        top: Number of most probable tokens.

    Raises:
        WorkerError: Entries are missing, or belong to other tokens.
    """
    positions = len(tokens) - 1
    if flat is None or len(flat) != len(tokens) or len(flat.logprobs) != positions * (top + 1):
        raise WorkerError("vLLM returned no log-probabilities for some tokens of a prompt that it computed in full.")
    ids = np.array(flat.token_ids, dtype=np.int32).reshape(positions, top + 1)
    logprobs = np.array(flat.logprobs, dtype=np.float32).reshape(positions, top + 1)
    if not np.array_equal(ids[:, 0], tokens[1:]):
        raise WorkerError("vLLM returned the log-probabilities of other tokens than those of the prompt.")
    return TopLogprobs(
        tokens=np.array(tokens, dtype=np.int32),
        next_logprobs=logprobs[:, 0],
        top_ids=ids[:, 1:],
        top_logprobs=logprobs[:, 1:],
    ).sorted()
