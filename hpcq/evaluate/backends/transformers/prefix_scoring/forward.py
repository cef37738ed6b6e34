"""Forward pass of a causal language model of transformers (5.17), with logits only at selected positions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.cache_utils import Cache

Numbers = npt.NDArray[np.int64]


class Forward:
    """Calls a model, whose head gets only the hidden states at the selected positions.

    Otherwise the logits of a vocabulary of 128,000 tokens would fill the memory. What the model does to logits after
    its head (scaling, capping) still happens. `logits_to_keep` would select the same columns in every row.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._logit_positions: torch.Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._select_hidden_states)

    @torch.inference_mode()
    def __call__(
        self, tokens: Numbers, logit_positions: Numbers, *, positions: Numbers, mask: Any, cache: Cache | None
    ) -> torch.Tensor:
        """Return the logits at `logit_positions`, [logit positions, vocabulary].

        Args:
            tokens: Token ids, [rows, tokens].
            logit_positions: Indices into the flattened `tokens`.
            positions: Position of each token in its text, [rows, tokens]; used only with a mask.
            mask: The model's attention mask; None if each row is one text from its beginning, with padding after it.
            cache: Keys and values of earlier tokens; None without a cache.
        """
        device = self._model.get_input_embeddings().weight.device
        # Given positions without a mask and a cache, a model would assume several texts per row.
        given = {} if mask is None else {"position_ids": torch.from_numpy(positions).to(device)}
        with self._selecting(torch.from_numpy(logit_positions if len(logit_positions) else np.zeros(1, np.int64))):
            output = self._model(
                input_ids=torch.from_numpy(tokens).to(device),
                attention_mask=mask,
                past_key_values=cache,
                use_cache=cache is not None,
                **given,
            )
        return output.logits[0, : len(logit_positions)]

    @contextlib.contextmanager
    def _selecting(self, logit_positions: torch.Tensor) -> Iterator[None]:
        self._logit_positions = logit_positions
        try:
            yield
        finally:
            self._logit_positions = None

    def _select_hidden_states(self, _: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._logit_positions is None:
            return None
        hidden = arguments[0]
        chosen = hidden.reshape(-1, hidden.shape[-1])[self._logit_positions.to(hidden.device)]
        return (chosen[None], *arguments[1:])


def gather_logprobs(
    logits: torch.Tensor, index: Numbers, target: Numbers, dtype: torch.dtype | None, max_elements: int = 2**25
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probability of each target token, and whether it is the likeliest token; both on the CPU.

    Computed as in lm-eval's HFLM (0.4.13), with the same type.

    Args:
        logits: The logits, [positions, vocabulary].
        index: Row of `logits` of each target, [targets].
        target: Token id of each target, [targets].
        dtype: Type for log-probabilities; None: the type of the logits.
        max_elements: Log-probabilities that are in memory at one time.
    """
    indices = torch.from_numpy(index).to(logits.device)
    targets = torch.from_numpy(target).to(logits.device)
    values, greedy = [], []
    rows = max(1, max_elements // logits.shape[-1])
    begins = range(0, len(logits), rows)
    for begin in begins:
        block = torch.log_softmax(logits[begin : begin + rows], dim=-1, dtype=dtype)
        in_block = (indices >= begin) & (indices < begin + rows)
        values.append(block[indices[in_block] - begin, targets[in_block]])
        greedy.append(block.argmax(dim=-1)[indices[in_block] - begin] == targets[in_block])
    # The blocks are in the order of `indices`: restore the order of targets.
    order = torch.argsort(indices // rows, stable=True).argsort().cpu()
    return torch.cat(values).cpu()[order], torch.cat(greedy).cpu()[order]
