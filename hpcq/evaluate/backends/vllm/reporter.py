"""Extension of each vLLM worker (0.32): registers loader and kernels, and reports kernels and unused tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from hpcq.evaluate.backends.vllm.quantization import UNUSED

_UNQUANTIZED, _KV_CACHE = "Unquantized", "KVCacheMethod"
"""Parts of the names of methods that do not multiply quantized weights."""
REPORTER = f"{__name__}.Reporter"


class Reporter:
    """Mixin that vLLM adds to its worker class (`worker_extension_cls`)."""

    model_runner: Any

    def __new__(cls, *_arguments: Any, **_settings: Any) -> Self:
        """Create the worker, and register loader and kernels: vLLM creates the worker before it loads the model."""
        from hpcq.evaluate.backends.vllm import checked_loading, cpu_kernels

        checked_loading.register()
        cpu_kernels.register()
        return super().__new__(cls)

    def hpcq_kernels(self) -> list[str]:
        """Return the classes that multiply quantized weights of linear layers and experts on this worker, sorted."""
        from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

        layers = [
            module
            for module in self.model_runner.get_model().modules()
            if isinstance(method := getattr(module, "quant_method", None), QuantizeMethodBase)
            and not type(method).__name__.startswith(_UNQUANTIZED)
            and not type(method).__name__.endswith(_KV_CACHE)
        ]
        return sorted({" ".join(_class_names(layer)) for layer in layers})

    def hpcq_unused_tensors(self) -> list[str]:
        """Return the tensors of the checkpoint that this worker has not read, sorted."""
        return list(getattr(self.model_runner.get_model(), UNUSED))


def _class_names(layer: Any) -> Iterator[str]:
    """Yield the names of a layer's method, of its scheme (compressed-tensors), and of their kernels."""
    method, scheme = layer.quant_method, getattr(layer, "scheme", None)
    for part in (method, scheme):
        if part is not None:
            yield type(part).__name__
            yield from (name for name in _types(part) if name.endswith("Kernel"))


def _types(part: object) -> Iterator[str]:
    yield from (type(value).__name__ for value in vars(part).values())
