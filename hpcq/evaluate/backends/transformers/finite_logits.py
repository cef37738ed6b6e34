"""Detection of NaN and infinite numbers in a transformers model: in the logits of generated tokens, and by layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch


class LogitsCheck:
    """Whether the logits that select the next tokens were finite in all forward passes so far.

    Single tokens may have minus infinity (some models exclude tokens): only the largest logit of a position counts. It
    is NaN if any logit is. The flag stays on the device, because reading it would wait for the GPU after every token.
    """

    def __init__(self) -> None:
        self._is_finite: torch.Tensor | None = None

    def __call__(self, _module: Any, _arguments: Any, output: Any) -> None:
        """Add the output of a forward pass. A forward hook of the model."""
        is_finite = torch.isfinite(output.logits[:, -1].amax(dim=-1)).all()
        self._is_finite = is_finite if self._is_finite is None else self._is_finite & is_finite

    @property
    def is_finite(self) -> bool:
        """Whether all logits were finite."""
        return self._is_finite is None or bool(self._is_finite)


@contextlib.contextmanager
def check_logits(model: Any) -> Iterator[LogitsCheck]:
    """Check the logits of all forward passes in the `with` block."""
    check = LogitsCheck()
    hook = model.register_forward_hook(check)
    try:
        yield check
    finally:
        hook.remove()


def first_not_finite_layer(model: Any, compute: Callable[[], object]) -> str | None:
    """Return the first layer whose output is not finite while `compute` runs `model`, as a clause; None: none.

    Slow: it reads every output. It checks all modules without submodules, in the order of their calls.
    """
    found: list[str] = []

    def look(name: str, module: Any, output: Any) -> None:
        if not found and isinstance(output, torch.Tensor) and not bool(torch.isfinite(output).all()):
            weights = [key for key, weight in module.named_parameters(recurse=False) if not _is_finite(weight)]
            reason = f"its {weights[0]} is not finite" if weights else "its weights are finite"
            found.append(f"the first layer with such an output is {name}; {reason}")

    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: look(name, module, output))
        for name, module in model.named_modules()
        if not any(module.children())
    ]
    try:
        compute()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _is_finite(weight: torch.Tensor) -> bool:
    return not weight.is_floating_point() or bool(torch.isfinite(weight).all())
