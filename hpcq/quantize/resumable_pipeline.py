"""llmcompressor's sequential calibration, with each block committed when it is done and put back in place after a kill.

Knows torch and llmcompressor 0.14; must not know where blocks lie, or what a scheme is.

llmcompressor has no resume of its own (its users have asked since 2025, issue 1410). What it offers is a registry of
calibration pipelines, from which `oneshot(pipeline=…)` takes one by name. Ours walks through the model as its own
sequential one does, with the same public parts in the same order, and so changes no bit. Only what its hooks and its
`sequential_epoch_end` did to a block has to be kept: the block's parameters and buffers. The activations that one block
hands to the next are not kept, they are as large as the calibration set; a pass through the blocks that were put
back makes them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from compressed_tensors.offload import (
    disable_offloading,
    disable_onloading,
    set_onload_device,
    update_offload_parameter,
)
from compressed_tensors.utils import patch_attr
from llmcompressor.core import LifecycleCallbacks, active_session
from llmcompressor.modifiers.utils.hooks import HooksMixin
from llmcompressor.observers import Observer
from llmcompressor.pipelines.cache import IntermediatesCache
from llmcompressor.pipelines.registry import CalibrationPipeline
from llmcompressor.pipelines.sequential.helpers import handle_sequential_oom, trace_subgraphs
from llmcompressor.utils.dev import get_main_device
from llmcompressor.utils.helpers import DisableQuantization, calibration_forward_context
from llmcompressor.utils.pytorch.module import infer_sequential_targets

from hpcq.quantize.block_store import Block, Blocks
from hpcq.quantize.safetensors_io import RawTensor

PIPELINE = "resumable"

# The names of safetensors' format (safetensors 0.6, Dtype).
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class _Progress:
    blocks: Blocks
    report: Callable[[str], None]
    warnings: list[str]


_progress: ContextVar[_Progress] = ContextVar("progress")


@contextlib.contextmanager
def progress_kept(blocks: Blocks, report: Callable[[str], None], warnings: list[str]) -> Iterator[None]:
    """Let the pipeline, which `oneshot` makes without arguments, keep its progress in `blocks`.

    `warnings` grows as llmcompressor warns; what was warned of during a block is kept with it.
    """
    before = _progress.set(_Progress(blocks=blocks, report=report, warnings=warnings))
    try:
        yield
    finally:
        _progress.reset(before)


class ResumablePipeline(CalibrationPipeline):
    """Gives every modifier a pass of its own, as llmcompressor's 'independent' pipeline does.

    It must: in one common pass GPTQ would collect its Hessians before the smoothing that changes them.
    """

    @staticmethod
    @handle_sequential_oom
    def __call__(model: Any, dataloader: Any, dataset_args: Any) -> None:
        """Calibrate `model` for the modifiers of the active session."""
        recipe = active_session().lifecycle.recipe
        modifiers = recipe.modifiers
        with patch_attr(recipe, "modifiers", None):
            for number, modifier in enumerate(modifiers):
                recipe.modifiers = [modifier]
                if modifier.requires_calibration_data:
                    _calibrate(f"{number}-{type(modifier).__name__}", modifier, model, dataloader, dataset_args)
                else:
                    CalibrationPipeline.load_from_registry("datafree")(model, dataloader, dataset_args)


CalibrationPipeline.register_value(ResumablePipeline, PIPELINE)


def _calibrate(stage: str, modifier: Any, model: Any, dataloader: Any, dataset_args: Any) -> None:
    """One modifier's pass. Follows SequentialPipeline of llmcompressor 0.14, but for what it keeps and skips."""
    onload_device = get_main_device()
    set_onload_device(model, onload_device)
    subgraphs = trace_subgraphs(
        model,
        next(iter(dataloader)),
        infer_sequential_targets(model, dataset_args.sequential_targets),
        dataset_args.tracing_ignore,
        dataset_args.sequential_targets_per_subgraph,
    )
    LifecycleCallbacks.calibration_start()
    with calibration_forward_context(model), DisableQuantization(model):
        state = active_session().state
        state.loss_masks = None
        state.sequential_prefetch = dataset_args.sequential_prefetch
        steps = [_Step(stage, number, len(subgraphs), modifier, model) for number in range(len(subgraphs))]
        # The first that is not kept ends it: `all` asks for no more. Where all are, no pass is needed.
        if not all(step.restore() for step in steps):
            offload_device = torch.device(dataset_args.sequential_offload_device)
            activations = IntermediatesCache.from_dataloader(dataloader, onload_device, offload_device)
            for step, subgraph in zip(steps, subgraphs, strict=True):
                with disable_offloading():
                    if not step.is_restored:
                        step.calibrate(subgraph, activations)
                    if step.number < len(steps) - 1:
                        step.propagate(subgraph, activations)
        LifecycleCallbacks.calibration_end()


class _Step:
    """One block in one modifier's pass. Number 0 is what stands before the first layer."""

    def __init__(self, stage: str, number: int, count: int, modifier: Any, model: Any) -> None:
        self.number = number
        self.is_restored = False
        self._name = f"{stage}-{number:03d}"
        self._layer = f"layer {number} of {count - 1}" if number else "what precedes layer 1"
        self._modifier = modifier
        self._model = model
        self._progress = _progress.get()

    def restore(self) -> bool:
        block = self._progress.blocks.take(self._name)
        if block is None:
            return False
        self.is_restored = True
        for name, raw in block.tensors.items():
            module, _, attribute = name.rpartition(".")
            update_offload_parameter(self._model.get_submodule(module), attribute, _from_raw(raw))
        for name, value in block.facts["modifier"].items():
            setattr(self._modifier, name, value)
        told = self._progress.warnings
        told.extend(text for text in block.facts["warnings"] if text not in told)
        return True

    def calibrate(self, subgraph: Any, activations: Any) -> None:
        self._progress.report(f"calibrating {self._layer}")
        modules = subgraph.submodules(self._model)
        tensors = _tensors_of(self._model, modules)
        before = {name: _digest(tensor) for name, tensor in tensors()}
        state = active_session().state
        for number, inputs in _batches(activations, subgraph):
            state.current_batch_idx = number
            subgraph.forward(self._model, **inputs)
        LifecycleCallbacks.sequential_epoch_end(modules)
        changed = {name: _raw(tensor) for name, tensor in tensors() if _digest(tensor) != before[name]}
        facts = {"modifier": _plain_state(self._modifier), "warnings": list(self._progress.warnings)}
        self._progress.blocks.commit(self._name, Block(tensors=changed, facts=facts))

    def propagate(self, subgraph: Any, activations: Any) -> None:
        if self.is_restored:
            self._progress.report(f"restoring {self._layer}")
        with HooksMixin.disable_hooks():
            for number, inputs in _batches(activations, subgraph):
                activations.update(number, subgraph.forward(self._model, **inputs))
                activations.delete(number, subgraph.consumed_names)


def _batches(activations: Any, subgraph: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    fetch = activations.iter_prefetch if active_session().state.sequential_prefetch else activations.iter
    return enumerate(fetch(subgraph.input_names))


def _tensors_of(model: Any, modules: Sequence[Any]) -> Callable[[], Iterator[tuple[str, torch.Tensor]]]:
    """Reads the modules' parameters and buffers, by their names in the model, one after the other.

    Observers are no part of a block: they hold statistics, and are removed when the pass ends.
    """
    names = {module: name for name, module in model.named_modules()}
    kept = [module for module in modules if not isinstance(module, Observer)]

    def read() -> Iterator[tuple[str, torch.Tensor]]:
        for module in kept:
            for attribute in (*module._parameters, *module._buffers):  # noqa: SLF001  those of this module alone
                # An offloaded model's tensors are read where they lie, not brought to the device and back; those that
                # lie on disk are 'meta' there, and have to be brought.
                with disable_onloading():
                    tensor = getattr(module, attribute)
                if tensor is not None and tensor.is_meta:
                    tensor = getattr(module, attribute)
                if tensor is not None:
                    yield f"{names[module]}.{attribute}", tensor

    return read


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def _raw(tensor: torch.Tensor) -> RawTensor:
    return RawTensor(dtype=_NAMES[tensor.dtype], shape=tuple(tensor.shape), data=_bytes(tensor))


def _from_raw(raw: RawTensor) -> torch.Tensor:
    dtype = _DTYPES[raw.dtype]
    if not raw.data.nbytes:
        return torch.empty(raw.shape, dtype=dtype)
    return torch.frombuffer(raw.data, dtype=dtype).reshape(raw.shape)


def _plain_state(modifier: Any) -> Mapping[str, Any]:
    """What a modifier counts from block to block: numbers and lists that JSON can hold.

    It decides on no bit of the checkpoint. GPTQ's warning of layers that it had to round to nearest and AWQ's table of
    errors are made of it at the end, and would otherwise tell of the last attempt's blocks alone.
    """
    found = {}
    for name, value in (modifier.__pydantic_private__ or {}).items():
        if isinstance(value, int | float | list):
            with contextlib.suppress(TypeError):
                found[name] = json.loads(json.dumps(value))
    return found
