"""Windows of the fidelity panel on lm-eval's HFLM (0.4.13): tokens as in its other requests, one pass per batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hpcq.core.errors import UserInputError
from hpcq.evaluate.panel_requests import window_tokens
from hpcq.evaluate.requests import Request
from hpcq.store import Response, TopLogprobs


def read_windows(lm: Any, batch: Sequence[Request]) -> list[Response]:
    """Return the log-probabilities of the most probable tokens at every position of the windows of `batch`.

    The softmax is computed in float32, window by window, so that its memory is that of one window.

    Args:
        lm: HFLM with the model and its tokenizer.
        batch: Requests of one panel; all windows have the same number of tokens, so there is no padding.

    Raises:
        WorkerError: A text has too few tokens.
        UserInputError: The model reads fewer tokens than a window has.
    """
    length = int(batch[0].arguments[1])
    if length > lm.max_length:
        raise UserInputError(
            f"fidelity.window: {length} tokens exceed the {lm.max_length} that the model reads: use a window of"
            f" {lm.max_length} or less."
        )
    tokens = torch.tensor([window_tokens(request, lm.tok_encode(request.arguments[0])) for request in batch])
    with torch.inference_mode():
        logits = lm._model_call(tokens.to(lm.device))  # noqa: SLF001 (HFLM has no public name for it)
        return [_response(row, own, int(batch[0].arguments[2])) for row, own in zip(tokens, logits, strict=True)]


def _response(tokens: torch.Tensor, logits: torch.Tensor, top: int) -> Response:
    """Return the response to one window.

    Args:
        tokens: Shape (tokens,).
        logits: Shape (tokens, vocabulary); those of the last token are not needed.
        top: Number of most probable tokens.
    """
    logprobs = torch.log_softmax(logits[:-1].float(), dim=-1)
    following = tokens[1:, None].to(logprobs.device)
    values, ids = logprobs.topk(min(top, logprobs.shape[1]), dim=-1)
    found = TopLogprobs(
        tokens=tokens.numpy().astype(np.int32),
        next_logprobs=logprobs.gather(1, following)[:, 0].cpu().numpy(),
        top_ids=ids.cpu().numpy().astype(np.int32),
        top_logprobs=values.cpu().numpy(),
    ).sorted()
    return Response(loglikelihood=found.loglikelihood, cut_tokens=0, logprobs=found.packed())
