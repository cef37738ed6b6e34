"""lm-eval's HFLM (0.4.13) that also records how it cuts prompts, and whether the logits of its texts are finite.

It sets HFLM's private `_max_length`, overrides its private methods `_loglikelihood_tokens`, `tok_batch_encode` and
`_model_generate`, and calls `_model_call`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from hpcq.evaluate.backends.transformers.finite_logits import check_logits
from hpcq.evaluate.prefix.tokenization import empty_answer_error
from hpcq.verify.loaded_model import TRIAL_TOKENS

_TABLES = {"mpt": "max_seq_len"}
"""Families whose position biases have a fixed number of rows, under a key that HFLM does not read.

HFLM assumes 2048 tokens, and torch fails with longer prompts than the key says.
"""


class RecordingLM(HFLM):
    """HFLM with records of its last call.

    Attributes:
        cut_tokens: Tokens that were removed from the left, by (context, continuation) or by prompt.
        has_finite_logits: Whether the logits of all generated tokens were finite.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        longest = getattr(self.config, _TABLES.get(self.config.model_type, ""), None)
        if longest and self.max_length > longest:
            self._max_length = int(longest)
        self.cut_tokens: dict[Hashable, int] = {}
        self.has_finite_logits = True

    def forget(self) -> None:
        """Remove the records before a call."""
        self.cut_tokens.clear()
        self.has_finite_logits = True

    def compute_trial(self) -> torch.Tensor:
        """Compute TRIAL_TOKENS tokens and return their logits."""
        with torch.inference_mode():
            logits: torch.Tensor = self._model_call(torch.arange(TRIAL_TOKENS, device=self.device)[None])
        return logits

    def _loglikelihood_tokens(self, requests: Sequence[Any], *arguments: Any, **settings: Any) -> Any:
        """Record what HFLM removes: it keeps the last `max_length` + 1 tokens, of which the model reads all but one."""
        for texts, context, continuation in requests:
            if not continuation:
                raise empty_answer_error(texts)
            self.cut_tokens[texts] = max(0, len(context) + len(continuation) - (self.max_length + 1))
        return super()._loglikelihood_tokens(requests, *arguments, **settings)

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,  # noqa: FBT001, FBT002  # the signature is lm-eval's
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode and pad as HFLM does, and record what it removes."""
        tokens, mask = super().tok_batch_encode(strings, padding_side, None, truncation)
        if not left_truncate_len:
            return tokens, mask
        for text, length in zip(strings, mask.sum(dim=1).tolist(), strict=True):
            self.cut_tokens[text] = max(0, length - left_truncate_len)
        return tokens[:, -left_truncate_len:], mask[:, -left_truncate_len:]

    def _model_generate(self, *arguments: Any, **settings: Any) -> Any:
        """Generate, and check the logits. While a text may still be reasoning, only the end token stops it.

        HFLM would stop in the reasoning at a stop sequence of the answer; lm-eval's vLLM backend does not.
        """
        if self.think_end_token is not None:
            settings["stop"] = [self.tok_decode(self.eot_token_id, skip_special_tokens=False)]
        with check_logits(self.model) as check:
            generated = super()._model_generate(*arguments, **settings)
        self.has_finite_logits &= check.is_finite
        return generated
