"""Calibration pipeline for llmcompressor 0.14 that skips the blocks in the block store.

llmcompressor cannot resume a calibration (requested in 2025, issue 1410). But it has a registry of calibration
pipelines, from which `oneshot(pipeline=…)` selects one by name. This pipeline calls the same public functions in the
same order as llmcompressor's sequential one, so the result is bit-identical. A committed block has the parameters and
buffers that llmcompressor's hooks and its `sequential_epoch_end` changed. The activations between blocks are not
stored, since they are as large as the calibration set. A forward pass through the restored blocks recomputes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
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

from hpcq.core.frozen import dataclass
from hpcq.quantize.block_store import Block, BlockStore
from hpcq.quantize.experts import RoutedTokens
from hpcq.quantize.safetensors_io import RawTensor

PIPELINE = "resumable"


@dataclass(frozen=True, kw_only=True)
class _Context:
    blocks: BlockStore
    report: Callable[[str], None]
    warnings: list[str]
    routed: RoutedTokens
    check_block: Callable[[Any], None]
    check_pass: Callable[[Any], None]


_context: ContextVar[_Context] = ContextVar("resumable_context")


@contextlib.contextmanager
def resumable(
    blocks: BlockStore,
    report: Callable[[str], None],
    warnings: list[str],
    *,
    routed: RoutedTokens,
    check_block: Callable[[Any], None],
    check_pass: Callable[[Any], None],
) -> Iterator[None]:
    """Set the context of the pipeline, which `oneshot` constructs without arguments.

    Args:
        blocks: Where blocks are committed and restored.
        report: Called with the current step.
        warnings: llmcompressor's warnings so far; those logged during a block are stored with it.
        routed: Counts the tokens of each expert; the counts of a block are stored with it.
        check_block: Called with a modifier after each block that it has calibrated.
        check_pass: Called with a modifier after its pass, when only permanently rounded values are rounded.
    """
    context = _Context(
        blocks=blocks,
        report=report,
        warnings=warnings,
        routed=routed,
        check_block=check_block,
        check_pass=check_pass,
    )
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)


class ResumablePipeline(CalibrationPipeline):
    """Runs a separate pass for every modifier, like llmcompressor's 'independent' pipeline.

    In a common pass GPTQ would collect its Hessians before SmoothQuant changes them.
    """

    @staticmethod
    @handle_sequential_oom
    def __call__(model: Any, dataloader: Any, dataset_args: Any) -> None:
        """Calibrate `model` for the modifiers of the active session."""
        recipe = active_session().lifecycle.recipe
        modifiers = recipe.modifiers
        _invalidate_scales(model)
        with patch_attr(recipe, "modifiers", None):
            for number, modifier in enumerate(modifiers):
                recipe.modifiers = [modifier]
                if modifier.requires_calibration_data:
                    _calibrate(f"{number}-{type(modifier).__name__}", modifier, model, dataloader, dataset_args)
                else:
                    CalibrationPipeline.load_from_registry("datafree")(model, dataloader, dataset_args)
                with DisableQuantization(model):
                    _context.get().check_pass(modifier)


CalibrationPipeline.register_value(ResumablePipeline, PIPELINE)


def _invalidate_scales(model: Any) -> None:
    """Set all scales to NaN, so that a scale that is never computed is detected.

    compressed-tensors 0.19 allocates scales without a value. A layer that the calibration text does not reach would
    keep uninitialized memory as its scales.
    """
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            for name, tensor in module.named_parameters(recurse=False):
                if name.endswith("_scale"):
                    update_offload_parameter(module, name, torch.full_like(tensor, torch.nan))


def _calibrate(stage: str, modifier: Any, model: Any, dataloader: Any, dataset_args: Any) -> None:
    """Run the pass of one modifier.

    A copy of SequentialPipeline in llmcompressor 0.14, except that it commits and restores blocks.
    """
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
        # `all` stops at the first block that cannot be restored. If all are restored, no pass is needed.
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
    """One block in the pass of one modifier. Number 0 is what precedes the first layer."""

    def __init__(self, stage: str, number: int, count: int, modifier: Any, model: Any) -> None:
        self.number = number
        self.is_restored = False
        self._name = f"{stage}-{number:03d}"
        self._layer = f"layer {number} of {count - 1}" if number else "what precedes layer 1"
        self._modifier = modifier
        self._model = model
        self._context = _context.get()

    def restore(self) -> bool:
        """Restore the block; return False if it must be calibrated."""
        block = self._context.blocks.restore(self._name)
        if block is None:
            return False
        self.is_restored = True
        for name, raw in block.tensors.items():
            module, _, attribute = name.rpartition(".")
            update_offload_parameter(self._model.get_submodule(module), attribute, _from_raw(raw))
        for name, value in block.facts["modifier"].items():
            setattr(self._modifier, name, value)
        self._context.routed.counts.update(block.facts.get("routed", {}))
        warnings = self._context.warnings
        warnings.extend(text for text in block.facts["warnings"] if text not in warnings)
        return True

    def calibrate(self, subgraph: Any, activations: Any) -> None:
        """Calibrate and commit the block."""
        self._context.report(f"calibrating {self._layer}")
        modules = subgraph.submodules(self._model)
        tensors = _tensor_reader(self._model, modules)
        before = {name: _digest(tensor) for name, tensor in tensors()}
        state = active_session().state
        with self._context.routed.counted(self._model) as routed:
            for number, inputs in _batches(activations, subgraph):
                state.current_batch_idx = number
                subgraph.forward(self._model, **inputs)
        LifecycleCallbacks.sequential_epoch_end(modules)
        changed = {name: _to_raw(tensor) for name, tensor in tensors() if _digest(tensor) != before[name]}
        facts = {
            "modifier": _json_state(self._modifier),
            "warnings": list(self._context.warnings),
            **({"routed": routed} if routed else {}),
        }
        self._context.blocks.commit(self._name, Block(tensors=changed, facts=facts))
        self._context.check_block(self._modifier)

    def propagate(self, subgraph: Any, activations: Any) -> None:
        """Compute the next block's inputs with the quantized block."""
        if self.is_restored:
            self._context.report(f"restoring {self._layer}")
        with HooksMixin.disable_hooks():
            for number, inputs in _batches(activations, subgraph):
                activations.update(number, subgraph.forward(self._model, **inputs))
                activations.delete(number, subgraph.consumed_names)


def _batches(activations: Any, subgraph: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    fetch = activations.iter_prefetch if active_session().state.sequential_prefetch else activations.iter
    return enumerate(fetch(subgraph.input_names))


def _tensor_reader(model: Any, modules: Sequence[Any]) -> Callable[[], Iterator[tuple[str, torch.Tensor]]]:
    """Return a function that iterates over the modules' parameters and buffers, by their names in the model.

    Observers do not belong to a block: they have statistics, and are removed at the end of the pass.
    """
    names = {module: name for name, module in model.named_modules()}
    owners = [module for module in modules if not isinstance(module, Observer)]

    def read() -> Iterator[tuple[str, torch.Tensor]]:
        for module in owners:
            for attribute in (*module._parameters, *module._buffers):  # noqa: SLF001  without those of submodules
                # Read offloaded tensors in place, without a copy to the device and back. Tensors that are offloaded to
                # disk are on 'meta', and must be onloaded.
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


def _to_raw(tensor: torch.Tensor) -> RawTensor:
    return RawTensor(dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape), data=_bytes(tensor))


def _from_raw(raw: RawTensor) -> torch.Tensor:
    dtype = getattr(torch, raw.dtype)
    if not raw.data.nbytes:
        return torch.empty(raw.shape, dtype=dtype)
    return torch.frombuffer(raw.data, dtype=dtype).reshape(raw.shape)


def _json_state(modifier: Any) -> Mapping[str, Any]:
    """Return the state that a modifier accumulates over blocks: numbers and lists that JSON can represent.

    It does not affect the checkpoint. At the end GPTQ derives its warning about layers rounded to nearest from it, and
    AWQ its table of errors. Without it, both would cover only the blocks of the last attempt.
    """
    found = {}
    for name, value in (modifier.__pydantic_private__ or {}).items():
        if isinstance(value, int | float | list):
            with contextlib.suppress(TypeError):
                found[name] = json.loads(json.dumps(value))
    return found
