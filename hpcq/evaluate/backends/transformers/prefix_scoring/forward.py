"""One forward pass of a causal language model, with logits at chosen places alone.

Knows how transformers' models are called (5.17); must not know passes, lanes or asks.
"""

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
    """Calls `model`. Its head is handed the positions whose logits are wanted, and no others.

    That keeps a vocabulary of 128,000 tokens from filling the memory, and whatever the model does to logits after its
    head, scaling or capping, is done. `logits_to_keep` would keep the same columns of every row.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._wanted: torch.Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._narrow)

    @torch.inference_mode()
    def __call__(
        self, tokens: Numbers, wanted: Numbers, *, positions: Numbers, mask: Any, cache: Cache | None
    ) -> torch.Tensor:
        """Logits [places, vocabulary] at `wanted`, which counts through the rows of `tokens` [rows, tokens].

        mask: as the model takes it; None: each row is a text from its beginning, and padding follows it.
        """
        device = self._model.get_input_embeddings().weight.device
        # Without a mask and a cache, a model would take given positions for those of several texts in one row.
        given = {} if mask is None else {"position_ids": torch.from_numpy(positions).to(device)}
        with self._narrowed(torch.from_numpy(wanted if len(wanted) else np.zeros(1, np.int64))):
            output = self._model(
                input_ids=torch.from_numpy(tokens).to(device),
                attention_mask=mask,
                past_key_values=cache,
                use_cache=cache is not None,
                **given,
            )
        return output.logits[0, : len(wanted)]

    @contextlib.contextmanager
    def _narrowed(self, wanted: torch.Tensor) -> Iterator[None]:
        self._wanted = wanted
        try:
            yield
        finally:
            self._wanted = None

    def _narrow(self, _: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._wanted is None:
            return None
        hidden = arguments[0]
        chosen = hidden.reshape(-1, hidden.shape[-1])[self._wanted.to(hidden.device)]
        return (chosen[None], *arguments[1:])


def read(
    logits: torch.Tensor, place: Numbers, target: Numbers, dtype: torch.dtype | None, most: int = 2**25
) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of each `target` at its `place`, and whether no token is likelier there, on the CPU.

    As lm-eval's HFLM does it (0.4.13), the type included. most: log-probabilities that are in memory at a time.
    """
    places = torch.from_numpy(place).to(logits.device)
    targets = torch.from_numpy(target).to(logits.device)
    values, greedy = [], []
    rows = max(1, most // logits.shape[-1])
    begins = range(0, len(logits), rows)
    for begin in begins:
        chunk = torch.log_softmax(logits[begin : begin + rows], dim=-1, dtype=dtype)
        here = (places >= begin) & (places < begin + rows)
        values.append(chunk[places[here] - begin, targets[here]])
        greedy.append(chunk.argmax(dim=-1)[places[here] - begin] == targets[here])
    # Back from the order of places.
    order = torch.argsort(places // rows, stable=True).argsort().cpu()
    return torch.cat(values).cpu()[order], torch.cat(greedy).cpu()[order]
