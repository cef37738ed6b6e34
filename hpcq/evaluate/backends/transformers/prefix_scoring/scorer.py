"""Log-likelihoods with shared prefixes on lm-eval's HFLM (0.4.13): tokenize, plan, run the engine.

Tokenizer, maximum length and types are HFLM's. HFLM's own scoring is the reference of the self-check.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from lm_eval.models.utils import has_bos_prefix

from hpcq.evaluate.backends.transformers.prefix_scoring.engine import Engine
from hpcq.evaluate.backends.transformers.prefix_scoring.self_check import (
    SELF_CHECK,
    self_check,
    tolerance,
    unquantized_activations,
    unsupported_reason,
)
from hpcq.evaluate.prefix.batching import PREFIX_CACHE_SHARE, Budget
from hpcq.evaluate.prefix.planner import plan_passes, restrict
from hpcq.evaluate.prefix.radix_tree import TokenRequest
from hpcq.evaluate.prefix.token_counts import TokenCounts, count_tokens
from hpcq.evaluate.prefix.tokenization import encode_pairs, token_requests

# KV that exists at one time. It depends on the kind of machine, not on its free memory, so that all shards are equal.
_KV_BYTES_ON_CPU = 2**31
_MAX_KV_TOKENS = 65_536

# Raised by models that do not support a call with a cache, positions and a mask.
_UNSUPPORTED_ERRORS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


class Scorer:
    """Scores with the model and tokenizer of an HFLM.

    Attributes:
        counts: Token counts of everything that was scored.
        max_difference: Largest difference to HFLM's log-likelihoods in the self-check.
        unsupported_reason: Why the model cannot be used; None if it can.
    """

    def __init__(self, lm: Any, *, on_gpu: bool, batch_share: float = 1.0, is_offloaded: bool = False) -> None:
        """Prepare the engine and run the self-check.

        Args:
            lm: The HFLM.
            on_gpu: Whether the model is on GPUs.
            batch_share: Fraction of the usual tokens that are computed and cached at once.
            is_offloaded: Whether weights are copied to the first GPU for every pass; the KV cache is on that GPU then.
        """
        self._lm = lm
        self.counts = TokenCounts()
        self.max_difference = 0.0
        self.unsupported_reason = self._check_support(batches_rows=on_gpu)
        if self.unsupported_reason is None:
            self._budget = _make_budget(
                self._engine.kv_bytes_per_token, on_gpu=on_gpu, share=batch_share, is_offloaded=is_offloaded
            )

    def score(self, pairs: Sequence[tuple[str, str]], wanted: Collection[int]) -> Iterator[tuple[int, float, bool]]:
        """Yield number, log-likelihood and greedy flag of each wanted pair, as soon as it is complete.

        Args:
            pairs: Contexts and continuations.
            wanted: Indices of the pairs to score. They are computed exactly as together with all others.
        """
        requests = self._token_requests(pairs)
        plan = restrict(plan_passes(requests, self._budget), wanted)
        for scored in self._engine.score(plan):
            yield scored.request, scored.loglikelihood, scored.is_greedy
        self.counts += count_tokens([requests[number] for number in wanted], plan)

    def _check_support(self, *, batches_rows: bool) -> str | None:
        """Make the engine and run the self-check; return why the model is unsupported, None if it is supported."""
        lm = self._lm
        try:
            if reason := unsupported_reason(lm.model):
                return reason
            self._engine = Engine(lm.model, softmax_dtype=lm.softmax_dtype, batches_rows=batches_rows)
            requests = self._token_requests(SELF_CHECK)
            with unquantized_activations(lm.model):
                self.max_difference = self_check(self._engine, requests, self._reference_loglikelihoods(requests))
        except torch.OutOfMemoryError:
            raise
        except _UNSUPPORTED_ERRORS as error:
            first = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            return f"the model cannot continue from a cached prefix ({first})"
        limit = tolerance(lm.model)
        # The condition is also true for NaN.
        if not self.max_difference <= limit:
            return f"log-likelihoods of the self-check differ by {self.max_difference:.2g}, more than {limit:.2g}"
        return None

    def _token_requests(self, pairs: Sequence[tuple[str, str]]) -> list[TokenRequest]:
        lm = self._lm
        return token_requests(encode_pairs(pairs, self._encode, lm.prefix_token_id), lm.max_length)

    def _encode(self, texts: Sequence[str], *, without_special_tokens: bool) -> list[list[int]]:
        """Return the tokens of each text, the same as HFLM's `tok_encode` of each."""
        lm = self._lm
        settings = {} if lm.add_bos_token is None else {"add_special_tokens": lm.add_bos_token}
        prefix = lm.tokenizer.decode(lm.prefix_token_id)
        is_bare = [without_special_tokens or has_bos_prefix(text, prefix) for text in texts]
        encoded: list[list[int]] = [[] for _ in texts]
        for selected, arguments in ((False, settings), (True, {"add_special_tokens": False})):
            numbers = [number for number in range(len(texts)) if is_bare[number] is selected]
            found = lm.tokenizer([texts[number] for number in numbers], **arguments)["input_ids"] if numbers else []
            for number, tokens in zip(numbers, found, strict=True):
                encoded[number] = tokens
        return encoded

    def _reference_loglikelihoods(self, requests: Sequence[TokenRequest]) -> list[float]:
        """Return HFLM's own log-likelihoods, computed one request at a time."""
        self._lm.batch_size_per_gpu = 1
        arguments = [
            (None, one.tokens[: -one.continuation_length].tolist(), one.tokens[-one.continuation_length :].tolist())
            for one in requests
        ]
        with torch.inference_mode():
            answers = self._lm._loglikelihood_tokens(arguments, disable_tqdm=True)  # noqa: SLF001
        return [float(value) for value, _ in answers]


def _make_budget(kv_bytes_per_token: int, *, on_gpu: bool, share: float, is_offloaded: bool) -> Budget:
    """Return the budget of this kind of machine.

    `pass_overhead_tokens` was measured on a CPU, with SmolLM2-135M in fp32. On a GPU a pass takes at least 25 ms, in
    which an 8B model computes some hundred tokens. With about ten GiB of weights to copy it takes seconds, in which the
    GPU computes thousands of tokens.
    """
    if not on_gpu:
        kv_tokens = min(_MAX_KV_TOKENS, _KV_BYTES_ON_CPU // kv_bytes_per_token)
        return Budget(
            max_kv_tokens=int(kv_tokens * share), max_batch_tokens=int(1_024 * share), pass_overhead_tokens=32
        )
    devices = range(1 if is_offloaded else torch.cuda.device_count())
    total = sum(torch.cuda.get_device_properties(device).total_memory for device in devices)
    kv_tokens = min(_MAX_KV_TOKENS, int(total * PREFIX_CACHE_SHARE) // kv_bytes_per_token)
    return Budget(
        max_kv_tokens=int(kv_tokens * share),
        max_batch_tokens=int(8_192 * share),
        max_batch_rows=max(1, int(256 * share)),
        pass_overhead_tokens=4_096 if is_offloaded else 256,
    )
