"""The scorer: from texts to log-likelihoods on lm-eval's HFLM (0.4.13), by way of asks, a schedule and the engine.

Knows HFLM's tokenizer, lengths and types, and its own scoring for comparison; must not know tasks, requests or files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from lm_eval.models.utils import has_bos_prefix

from hpcq.evaluate.backends.transformers.prefix_scoring.engine import Engine
from hpcq.evaluate.backends.transformers.prefix_scoring.self_check import (
    TRIAL,
    exact_activations,
    tolerance,
    trial,
    why_not,
)
from hpcq.evaluate.prefix.batching import Limits
from hpcq.evaluate.prefix.planner import part, schedule
from hpcq.evaluate.prefix.radix_tree import Ask
from hpcq.evaluate.prefix.token_counts import Counts, count
from hpcq.evaluate.prefix.tokenization import asks_of, encode_pairs

# KV that lives at one time: by the machine's kind and not by what is free on it, lest two shards differ.
_KV_BYTES_ON_CPU = 2**31
_KV_SHARE_OF_GPUS = 1 / 16
_MOST_KV_TOKENS = 65_536

# What models raise when they are called in a way that they were not made for.
_REFUSALS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


class Scorer:
    """Scores with the model and tokenizer of `lm`, an HFLM.

    why_not: the reason for which it cannot, None if it can. difference: between its log-likelihoods and HFLM's in the
    trial. counts: of all that was scored. batch_share: how much of the usual is computed and kept at once.
    is_offloaded: weights are brought to the first GPU for each pass, and what they compute is kept there.
    """

    def __init__(self, lm: Any, *, on_gpu: bool, batch_share: float = 1.0, is_offloaded: bool = False) -> None:
        self._lm = lm
        self.counts = Counts()
        self.difference = 0.0
        self.why_not = self._find_out(stacks_lanes=on_gpu)
        if self.why_not is None:
            self._limits = _limits(
                self._engine.kv_bytes_per_token, on_gpu=on_gpu, share=batch_share, is_offloaded=is_offloaded
            )

    def score(self, pairs: Sequence[tuple[str, str]], wanted: Collection[int]) -> Iterator[tuple[int, float, bool]]:
        """Number, log-likelihood and greedy flag of each `wanted` (context, continuation), as they are known.

        They are computed as they would be together with all others.
        """
        asks = self._asks(pairs)
        plan = part(schedule(asks, self._limits), wanted)
        for answer in self._engine.score(plan):
            yield answer.ask, answer.loglikelihood, answer.is_greedy
        self.counts += count([asks[number] for number in wanted], plan)

    def _find_out(self, *, stacks_lanes: bool) -> str | None:
        """Make the engine and try it; or tell why the model is not for it."""
        lm = self._lm
        try:
            if reason := why_not(lm.model):
                return reason
            self._engine = Engine(lm.model, softmax_dtype=lm.softmax_dtype, stacks_lanes=stacks_lanes)
            asks = self._asks(TRIAL)
            with exact_activations(lm.model):
                self.difference = trial(self._engine, asks, self._plain(asks))
        except torch.OutOfMemoryError:
            raise
        except _REFUSALS as error:
            first = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            return f"the model cannot go on from a kept prefix ({first})"
        most = tolerance(lm.model)
        # Written so that a difference which is no number is one.
        if not self.difference <= most:
            return f"log-likelihoods of a trial differ by {self.difference:.2g}, where {most:.2g} is rounding"
        return None

    def _asks(self, pairs: Sequence[tuple[str, str]]) -> list[Ask]:
        lm = self._lm
        return asks_of(encode_pairs(pairs, self._encode, lm.prefix_token_id), lm.max_length)

    def _encode(self, texts: Sequence[str], *, plain: bool) -> list[list[int]]:
        """The tokens of each text, as HFLM's tok_encode gives them one by one."""
        lm = self._lm
        settings = {} if lm.add_bos_token is None else {"add_special_tokens": lm.add_bos_token}
        begin = lm.tokenizer.decode(lm.prefix_token_id)
        encoded: list[list[int]] = [[] for _ in texts]
        for is_bare, chosen in ((False, settings), (True, {"add_special_tokens": False})):
            mine = [number for number, text in enumerate(texts) if (plain or has_bos_prefix(text, begin)) is is_bare]
            found = lm.tokenizer([texts[number] for number in mine], **chosen)["input_ids"] if mine else []
            for number, tokens in zip(mine, found, strict=True):
                encoded[number] = tokens
        return encoded

    def _plain(self, asks: Sequence[Ask]) -> list[float]:
        """The log-likelihoods that HFLM gives, one ask at a time."""
        self._lm.batch_size_per_gpu = 1
        requests = [
            (None, ask.tokens[: -ask.continuation].tolist(), ask.tokens[-ask.continuation :].tolist()) for ask in asks
        ]
        with torch.inference_mode():
            answers = self._lm._loglikelihood_tokens(requests, disable_tqdm=True)  # noqa: SLF001
        return [float(value) for value, _ in answers]


def _limits(kv_bytes_per_token: int, *, on_gpu: bool, share: float, is_offloaded: bool) -> Limits:
    """What the machine's kind allows. A pass costs as much as `pass_tokens` more tokens would.

    On a CPU that was measured, with SmolLM2-135M in fp32. On a GPU a pass takes 25 ms at least, in which an 8B model
    computes some hundred tokens; with some ten GiB to bring there it takes seconds, and the GPU computes thousands.
    """
    if not on_gpu:
        kv_tokens = min(_MOST_KV_TOKENS, _KV_BYTES_ON_CPU // kv_bytes_per_token)
        return Limits(kv_tokens=int(kv_tokens * share), batch_tokens=int(1_024 * share), pass_tokens=32)
    devices = range(1 if is_offloaded else torch.cuda.device_count())
    total = sum(torch.cuda.get_device_properties(device).total_memory for device in devices)
    kv_tokens = min(_MOST_KV_TOKENS, int(total * _KV_SHARE_OF_GPUS) // kv_bytes_per_token)
    return Limits(
        kv_tokens=int(kv_tokens * share),
        batch_tokens=int(8_192 * share),
        batch_rows=max(1, int(256 * share)),
        pass_tokens=4_096 if is_offloaded else 256,
    )
