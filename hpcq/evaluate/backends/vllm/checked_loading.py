"""Loader of vLLM (0.32) that refuses weights which are missing, incomplete or not finite, and records unused tensors.

vLLM leaves a parameter uninitialized if the checkpoint has no tensor for it. Its own check (`track_weights_loading`)
skips quantized models and all linear layers, and a fused `qkv_proj` counts as loaded once `q_proj` is. Many models also
skip tensors whose names they do not know.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from hpcq.core.errors import UserInputError, WorkerError
from hpcq.core.sentences import first_line
from hpcq.evaluate.backends.vllm.quantization import LOAD_FORMAT, UNUSED
from hpcq.verify.loaded_model import missing_problem, values_problem

_FIX = "copy or download the checkpoint again, correct its config.json, or quantize the model again"
_MAX_REASON_CHARACTERS = 300
_ALWAYS_LOADED = ("weight", "weight_packed", "qweight")
"""Parameters of linear layers and embeddings that every format stores; vLLM pads them only after loading."""


class CheckedLoader(DefaultModelLoader):
    """vLLM's default loader with checks. It reads only files in Hugging Face's format."""

    def __init__(self, load_config: Any) -> None:
        super().__init__(dataclasses.replace(load_config, load_format="hf"))
        self.enable_weights_track = True
        self._monitor = _LoadMonitor({})
        self._reported: set[str] | None = None

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
        """Load the weights.

        Raises:
            UserInputError: Weights are missing or incomplete, or values are not finite.
            WorkerError: vLLM cannot load a tensor.
        """
        self._monitor = monitor = _LoadMonitor(dict(model.named_parameters()))
        try:
            with monitor:
                super().load_weights(model, model_config)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, IndexError, KeyError, RuntimeError, ValueError) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"[:_MAX_REASON_CHARACTERS]
            what = f"tensor {monitor.latest}" if monitor.latest else "it"
            raise WorkerError(f"{model_config.model}: vLLM cannot load {what} ({reason}): {_FIX}.") from error
        incomplete = {*_incomplete_parameters(model, monitor), *self._unreported_parameters(model, monitor)}
        written = ((name, value) for name, value in model.named_parameters() if monitor.written(name, value))
        problem = missing_problem(incomplete) or values_problem(written)
        if problem:
            raise UserInputError(f"{model_config.model}: {problem}: {_FIX}.")
        setattr(model, UNUSED, monitor.unused())

    def track_weights_loading(
        self,
        _model: torch.nn.Module,
        loaded_weights: set[str] | None,
        quantized: bool = False,  # noqa: FBT001, FBT002  # vLLM's signature
    ) -> None:
        """Record which parameters an unquantized model reports as loaded. This replaces vLLM's own check."""
        self._reported = None if quantized else loaded_weights

    def _unreported_parameters(self, model: torch.nn.Module, monitor: _LoadMonitor) -> Iterator[str]:
        """Yield parameters of an unquantized model that were not loaded, without scales, which have defaults."""
        if self._reported is None:
            return
        for prefix, module in model.named_modules():
            if not hasattr(getattr(module, "quant_method", None), "process_weights_after_loading"):
                names = (f"{prefix}.{own}" if prefix else own for own, _ in module.named_parameters(recurse=False))
                yield from (name for name in names if name not in self._reported and not monitor.is_written(name))

    def get_all_weights(self, model_config: Any, model: torch.nn.Module) -> Generator[tuple[str, torch.Tensor]]:
        """Yield names and tensors of the checkpoint, and record their addresses in the monitor."""
        for name, tensor in super().get_all_weights(model_config, model):
            self._monitor.offer(name, tensor)
            yield name, tensor


def register() -> None:
    """Make the loader known to vLLM in this process."""
    register_model_loader(LOAD_FORMAT)(CheckedLoader)


class _LoadMonitor(TorchDispatchMode):
    """Observes which tensors of a checkpoint are read, and how many values of each parameter are written.

    Args:
        parameters: Parameters of the model by name.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._addresses = {name: _storage(value) for name, value in parameters.items() if not value.is_meta}
        self._values: dict[int, int] = defaultdict(int)
        self._offered: dict[str, bool] = {}
        self._starts: list[int] = []
        self._ranges: dict[int, tuple[int, str]] = {}
        self.latest = ""

    def offer(self, name: str, tensor: torch.Tensor) -> None:
        """Record the addresses of a tensor of the checkpoint, and remove earlier tensors that had the same memory."""
        self.latest = name
        self._offered.setdefault(name, False)
        begin, end = tensor.data_ptr(), tensor.data_ptr() + max(1, tensor.nbytes)
        first = max(0, bisect.bisect_right(self._starts, begin) - 1)
        while first < len(self._starts) and self._starts[first] < end:
            if self._ranges[self._starts[first]][0] > begin:
                del self._ranges[self._starts.pop(first)]
            else:
                first += 1
        bisect.insort(self._starts, begin)
        self._ranges[begin] = (end, name)

    def written(self, name: str, parameter: torch.Tensor) -> int:
        """Return how many values of a parameter were written; all of them if the parameter was replaced."""
        if name not in self._addresses or self._addresses[name] != _storage(parameter):
            return parameter.numel()
        return self._values[self._addresses[name]]

    def is_written(self, name: str) -> bool:
        """Return whether a value of the parameter was written in place."""
        return name in self._addresses and self._values[self._addresses[name]] > 0

    def unused(self) -> list[str]:
        """Return the names of the tensors that were not read, sorted."""
        return sorted(name for name, is_used in self._offered.items() if not is_used)

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and record what it reads and writes."""
        result = func(*args, **(kwargs or {}))
        aliases = [argument.alias_info for argument in func._schema.arguments]  # noqa: SLF001  # no public name
        is_writing = any(alias is not None and alias.is_write for alias in aliases)
        if not is_writing and any(alias is not None for alias in aliases):
            return result  # a view
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor) and not value.is_meta:
                self._use(value.data_ptr())
        if is_writing:
            for target in tree_leaves(result):
                if isinstance(target, torch.Tensor) and not target.is_meta:
                    self._values[_storage(target)] += target.numel()
        return result

    def _use(self, address: int) -> None:
        position = bisect.bisect_right(self._starts, address) - 1
        if position >= 0:
            end, name = self._ranges[self._starts[position]]
            if address < end:
                self._offered[name] = True


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _incomplete_parameters(model: torch.nn.Module, monitor: _LoadMonitor) -> Iterator[str]:
    """Yield the parameters that were not completely written, although other layers show that they are stored.

    The files of a format need not have all parameters, and kernels may pad experts. So a parameter that is neither a
    weight of a linear layer or of embeddings, nor one whose values vLLM counts, is missing only if a larger part of the
    same parameter of another layer was written.
    """
    shares: dict[tuple[type, str, torch.Size], dict[str, float]] = defaultdict(dict)
    for prefix, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{own}" if prefix else own
            if parameter.is_meta or not parameter.numel():
                continue
            counted = getattr(parameter, "weight_loader_numel", None)  # without padding
            share = monitor.written(name, parameter) / (counted or parameter.numel())
            is_weight = own in _ALWAYS_LOADED and isinstance(module, LinearBase | VocabParallelEmbedding)
            if share < 1 and (is_weight or counted):
                yield name
            else:
                shares[type(module), own, parameter.shape][name] = share
    for found in shares.values():
        largest = min(1.0, max(found.values()))
        yield from (name for name, share in found.items() if share < largest)
