"""Seeds of generated texts, and which texts depend on the batch that they are generated in.

A sampled text depends on its request and its seed alone: not on the shard, on the batch, or on an interruption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from hpcq.evaluate.requests import Request

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {"repetition_penalty": (None, 1), "do_sample": (None, False)}
"""Values with which a row of a batch is computed as if it were alone, up to rounding."""
_SAMPLING_ARGUMENTS = ("temperature", "top_p", "top_k", "min_p", "typical_p")
"""Arguments without effect on greedy texts."""
_LENGTHS_AND_STOPS = ("until", "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


def is_sampled(arguments: Mapping[str, Any]) -> bool:
    """Return whether lm-eval samples with these generation arguments (`normalize_gen_kwargs`, 0.4.13)."""
    do_sample = arguments.get("do_sample")
    return bool(do_sample) if do_sample is not None else float(arguments.get("temperature") or 0.0) > 0


def depends_on_other_rows(arguments: Mapping[str, Any]) -> bool:
    """Return whether transformers (5.17) generates another text in a batch than alone, apart from rounding.

    One random generator serves all rows. The repetition penalty also applies to padding, which often is the end token:
    then answers do not end.
    """
    if is_sampled(arguments):
        return True
    without_effect = (*_LENGTHS_AND_STOPS, *_SAMPLING_ARGUMENTS)
    return any(value not in _NEUTRAL.get(name, ()) for name, value in arguments.items() if name not in without_effect)


def seed_of(request: Request, evaluation_seed: int) -> int:
    """Return the seed of a request's text: a 32-bit hash of the task's or evaluation's seed and the request's key.

    The key has the number of the repeat, and a digest of the prompt and the arguments.
    """
    seed = evaluation_seed if request.seed is None else request.seed
    return int.from_bytes(hashlib.sha256(f"{seed} {request.key}".encode()).digest()[:4])
