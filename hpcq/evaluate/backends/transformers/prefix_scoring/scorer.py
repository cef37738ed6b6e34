"""Log-likelihoods with shared prefixes on lm-eval's HFLM (0.4.13): tokenize, plan, run the engine.

Tokenizer, maximum length and types are HFLM's. HFLM's own scoring is the reference of the self-check.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from lm_eval.models.utils import has_bos_prefix

from hpcq.core.sentences import first_line
from hpcq.evaluate.backends.transformers.prefix_scoring.engine import Engine
from hpcq.evaluate.backends.transformers.prefix_scoring.model_support import unsupported_reason
from hpcq.evaluate.backends.transformers.prefix_scoring.quantized_activations import (
    BatchWideScales,
    quantizes_activations,
    unquantized_activations,
)
from hpcq.evaluate.backends.transformers.prefix_scoring.self_check import (
    SELF_CHECK,
    Reference,
    compare,
    last_tokens_read,
    whole_requests,
)
from hpcq.evaluate.prefix.agreement import Agreement
from hpcq.evaluate.prefix.batching import PREFIX_CACHE_SHARE, Budget
from hpcq.evaluate.prefix.planner import plan_passes, restrict
from hpcq.evaluate.prefix.radix_tree import TokenRequest
from hpcq.evaluate.prefix.token_counts import TokenCounts, count_tokens
from hpcq.evaluate.prefix.tokenization import encode_pairs, token_requests
from hpcq.store import Response

# KV that exists at one time. It depends on the kind of machine, not on its free memory, so that all shards are equal.
_KV_BYTES_ON_CPU = 2**31
_MAX_KV_TOKENS = 65_536

_LOG = logging.getLogger(__name__)

# Raised by models that do not support a call with a cache, positions and a mask.
_UNSUPPORTED_ERRORS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


class Scorer:
    """Scores with the model and tokenizer of an HFLM.

    Attributes:
        counts: Token counts of everything that was scored.
        agreement: Agreement with whole requests in all checks; with quantized activations if the model has them.
        unsupported_reason: Why the model cannot be used; None if it can.
        has_batch_wide_scale: Whether the reason is a dynamic scale of the activations of a whole batch.
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
        self.agreement = Agreement()
        self.quantizes_activations = quantizes_activations(lm.model)
        self.has_batch_wide_scale = False
        self._budget = Budget()
        self.unsupported_reason = unsupported_reason(lm.model)
        if self.unsupported_reason is None:
            self._engine = Engine(lm.model, softmax_dtype=lm.softmax_dtype, batches_rows=on_gpu)
            self.unsupported_reason = self._check(self._token_requests(SELF_CHECK), self._hflm_loglikelihoods)
        if self.unsupported_reason is None:
            self._budget = _make_budget(
                self._engine.kv_bytes_per_token, on_gpu=on_gpu, share=batch_share, is_offloaded=is_offloaded
            )

    def check(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Check the model with requests of the run, among them its longest; `unsupported_reason` has the result."""
        requests = [last_tokens_read(request) for request in self._token_requests(pairs)]
        self.unsupported_reason = self._check(requests, whole_requests(self._engine.forward, self._lm.softmax_dtype))

    def score(self, pairs: Sequence[tuple[str, str]], wanted: Collection[int]) -> Iterator[tuple[int, Response]]:
        """Yield number and response of each wanted pair, as soon as it is complete.

        Args:
            pairs: Contexts and continuations.
            wanted: Indices of the pairs to score. Their responses are the same as if all pairs were scored.
        """
        requests = self._token_requests(pairs)
        plan = restrict(plan_passes(requests, self._budget), wanted)
        for scored in self._engine.score(plan):
            yield (
                scored.request,
                Response(scored.loglikelihood, scored.is_greedy, cut_tokens=requests[scored.request].cut_tokens),
            )
        self.counts += count_tokens([requests[number] for number in wanted], plan)

    def _check(self, requests: Sequence[TokenRequest], reference: Reference) -> str | None:
        """Return why the model is unsupported; None if it is supported: then its agreement is recorded."""
        model = self._lm.model
        longest = max(requests, key=lambda request: request.input_length)
        try:
            if reason := self._engine.unsupported_attention(longest.tokens[:-1]):
                return reason
            with unquantized_activations(model):
                agreement = compare(self._engine, requests, reference, self._budget)
            # Quantized activations turn rounding differences into large ones: no limit could be checked with them.
            if reason := agreement.disagreement(dtype_name(model)):
                return reason
            if self.quantizes_activations:
                with BatchWideScales(model) as scales:
                    agreement = compare(self._engine, requests, reference, self._budget)
                if scales.layer is not None:
                    self.has_batch_wide_scale = True
                    return f"one dynamic scale quantizes the activations of a whole batch in {scales.layer}"
        except torch.OutOfMemoryError:
            raise
        except _UNSUPPORTED_ERRORS as error:
            _LOG.info("A text was not continued from a cached prefix: %s: %s", type(error).__name__, first_line(error))
            return "the model cannot continue from a cached prefix"
        self.agreement |= agreement
        return None

    def _token_requests(self, pairs: Sequence[tuple[str, str]]) -> list[TokenRequest]:
        lm = self._lm
        return token_requests(encode_pairs(pairs, self._encode, lm.prefix_token_id), lm.max_length, pairs)

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

    def _hflm_loglikelihoods(self, requests: Sequence[TokenRequest], batch_size: int) -> list[float]:
        """Return HFLM's own log-likelihoods."""
        self._lm.batch_size_per_gpu = batch_size
        arguments = [
            (None, one.tokens[: -one.continuation_length].tolist(), one.tokens[-one.continuation_length :].tolist())
            for one in requests
        ]
        with torch.inference_mode():
            answers = self._lm._loglikelihood_tokens(arguments, disable_tqdm=True)  # noqa: SLF001
        return [float(value) for value, _ in answers]


def dtype_name(model: Any) -> str:
    """Return the data type of a model, without 'torch.'."""
    return str(model.dtype).removeprefix("torch.")


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
