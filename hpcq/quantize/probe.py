"""Log-likelihoods of a short text, with nothing but torch and transformers, in every environment of a quantizer."""

from __future__ import annotations

from typing import Any

from hpcq.quantize.model_loading import PROBE

MAX_TOKENS = 64


def probe_tokens(tokenizer: Any) -> list[int]:
    """Return the tokens of the text."""
    tokens: list[int] = tokenizer(PROBE)["input_ids"][:MAX_TOKENS]
    return tokens


def log_likelihoods(model: Any, tokens: list[int]) -> Any:
    """Return the log-likelihood of each token after the first, as a tensor on the CPU."""
    import torch

    row = torch.tensor([tokens], device=model.get_input_embeddings().weight.device)
    with torch.no_grad():
        logits = model(input_ids=row, use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(-1, row[0, 1:, None].to(logits.device))[:, 0].cpu()


def mean_difference(first: Any, second: Any) -> float:
    """Return the mean absolute difference of two lists of log-likelihoods, in nats."""
    return float((first - second).abs().mean())
