"""Quantized activations of a loaded model: which modules quantize their inputs, and what each scale covers.

What a configuration declares is lost once transformers (5.17) has loaded a decompressed checkpoint, so the modules are
read: those of compressed-tensors (0.19), and those whose inputs hpcq rounds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Self

from hpcq.evaluate.backends.transformers.dequantization import InputRounding

_WHOLE_TENSOR, _PER_TOKEN = "tensor", "token"
# With one scale per token, compressed-tensors reduces all dimensions but the first two. Inputs of [tokens, features],
# as the layers of experts often get them, have one scale for all tokens of the batch.
_DIMENSIONS_WITH_TOKENS = 3


class BatchWideScales:
    """Finds, in forward passes, layers whose activations have one dynamic scale for a whole batch.

    Attributes:
        layer: Name of the first such layer; None: there was none.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.layer: str | None = None

    def __enter__(self) -> Self:
        self._hooks = [
            module.register_forward_pre_hook(self._hook(name, str(inputs.strategy)))
            for name, module in self._model.named_modules()
            if (inputs := _declared_inputs(module)) is not None and inputs.dynamic
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str, strategy: str) -> Any:
        def observe(_: Any, arguments: tuple[Any, ...]) -> None:
            is_one_scale = strategy == _WHOLE_TENSOR or (
                strategy == _PER_TOKEN and arguments[0].ndim < _DIMENSIONS_WITH_TOKENS
            )
            if is_one_scale and self.layer is None:
                self.layer = name

        return observe


def quantizes_activations(model: Any) -> bool:
    """Return whether any layer of the model quantizes its inputs."""
    return any(_declared_inputs(module) is not None or InputRounding.of(module) for module in model.modules())


@contextlib.contextmanager
def unquantized_activations(model: Any) -> Iterator[None]:
    """Disable the quantization of activations.

    With quantized activations the self-check would show nothing: a rounding difference selects another step of the
    grid, and the difference grows through the layers. SmolLM2-135M in FP8, one text at a time, differs by 1.1 nats
    between two attention kernels, and by 1e-5 nats without quantized activations.
    """
    quantized = [
        module
        for module in model.modules()
        if getattr(module, "quantization_scheme", None) is not None and getattr(module, "quantization_enabled", True)
    ]
    rounded = [found for module in model.modules() if (found := InputRounding.of(module)) is not None]
    for module in quantized:
        module.quantization_enabled = False
    for rounding in rounded:
        rounding.is_enabled = False
    try:
        yield
    finally:
        for module in quantized:
            module.quantization_enabled = True
        for rounding in rounded:
            rounding.is_enabled = True


def _declared_inputs(module: Any) -> Any:
    """Return compressed-tensors' arguments of a layer's inputs; None: it does not quantize them."""
    scheme = getattr(module, "quantization_scheme", None)
    return None if scheme is None else scheme.input_activations
