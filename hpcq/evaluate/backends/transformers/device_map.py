"""Device map of a model: assigns layers to GPUs, and those that do not fit to host memory and disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from hpcq.core.errors import WorkerError
from hpcq.core.frozen import dataclass
from hpcq.core.host_memory import host_memory_bytes
from hpcq.core.layer_split import balance, bytes_per_place, fill
from hpcq.core.work_records import Offload

CPU, DISK = "cpu", "disk"
Device = int | str
"""Number of a GPU, "cpu" or "disk": the values of a device map of transformers."""

_GIB = 2**30
_GPU_FRACTION_WITHOUT_OFFLOAD = 0.92
"""Fraction of a GPU's memory for weights when nothing can be offloaded; the rest is the minimum for computing."""
_GPU_FRACTION = 0.75
_HOST_FRACTION = 0.75
"""Defaults for offloading if the plan has no values; the rest is for KV cache, activations and the process."""


@dataclass(frozen=True, kw_only=True)
class NodeMemory:
    """Memory of a node.

    Attributes:
        gpu_bytes: Bytes of each GPU.
        host_bytes: Bytes of host memory that the job has.
    """

    gpu_bytes: tuple[int, ...]
    host_bytes: int


@dataclass(frozen=True, kw_only=True)
class ModuleGroup:
    """Modules that must be on the same device: one, or several that share weights.

    Attributes:
        names: Qualified names of the modules.
        bytes: Bytes of their weights and buffers.
    """

    names: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class DeviceMap:
    """Device of each module.

    Attributes:
        devices: Device by module name.
        host_bytes: Bytes of weights that are offloaded to host memory; 0 on a node without GPUs.
        disk_bytes: Bytes of weights that are offloaded to disk.
    """

    devices: Mapping[str, Device]
    host_bytes: int = 0
    disk_bytes: int = 0

    @property
    def is_single_device(self) -> bool:
        """Whether all modules are on one device."""
        return len(set(self.devices.values())) == 1 and not self.disk_bytes

    @property
    def offloaded_gib(self) -> float:
        """GiB of weights that are copied to the computing device for every pass."""
        return round((self.host_bytes + self.disk_bytes) / _GIB, 2)


def node_memory(*, on_gpu: bool) -> NodeMemory:
    """Return the memory of this node's GPUs, and the host memory that this process may use."""
    devices = range(torch.cuda.device_count() if on_gpu else 0)
    gpu_bytes = tuple(torch.cuda.get_device_properties(device).total_memory for device in devices)
    return NodeMemory(gpu_bytes=gpu_bytes, host_bytes=host_memory_bytes())


def make_device_map(
    model: Any, memory: NodeMemory, offload: Offload, *, model_name: str, can_use_disk: bool = True
) -> DeviceMap:
    """Assign the layers of `model` to devices, in their order.

    Without offloading, layers are balanced: the fullest GPU gets as little as possible. With offloading, GPUs are
    filled one by one, and the first GPU reserves space for the largest tensor that is copied to it.

    Args:
        model: The model; on the `meta` device is enough.
        memory: Memory of the node.
        offload: Where weights can be offloaded to, and the limits of the plan.
        model_name: Name for messages.
        can_use_disk: Whether weights of this checkpoint can be on a disk.

    Raises:
        WorkerError: the weights do not fit. Its cause is a MemoryError, which classifies the attempt as out of memory.
    """
    groups = module_groups(model)
    sizes = [group.bytes for group in groups]
    total = sum(sizes)
    places, used = None, list[Device](range(len(memory.gpu_bytes)))
    if memory.gpu_bytes and (offload.to == "none" or not offload.gpu_gib):
        fraction = _GPU_FRACTION_WITHOUT_OFFLOAD if offload.to == "none" else _GPU_FRACTION
        places = balance(sizes, [int(size * fraction) for size in memory.gpu_bytes])
    if places is None and (offload.to != "none" or not memory.gpu_bytes):
        largest = max(parameter.nbytes for parameter in model.parameters())
        capacities = _capacities(memory, offload, largest, can_use_disk=can_use_disk)
        used = [device for device, _ in capacities]
        places = fill(sizes, [capacity for _, capacity in capacities])
        if places is not None and places[0] != 0:
            places = None  # embeddings must be on the first device, where the input is
    if places is None:
        message = _out_of_memory_message(model_name, total, memory, offload, can_use_disk=can_use_disk)
        raise WorkerError(message) from MemoryError(f"{total} bytes of weights")
    held = dict(zip(used, bytes_per_place(sizes, places, len(used)), strict=True))
    return DeviceMap(
        devices=_by_name(groups, used, places),
        host_bytes=held.get(CPU, 0) if memory.gpu_bytes else 0,
        disk_bytes=held.get(DISK, 0),
    )


def module_groups(model: Any) -> list[ModuleGroup]:
    """Return the groups that cannot be split, embeddings first, then in the model's order.

    Every element of a `ModuleList` (a transformer block) stays whole.
    """
    no_split_classes = set(getattr(model, "_no_split_modules", None) or ())
    owners: dict[int, int] = {}
    first = 0
    names: list[list[str]] = []
    sizes: list[int] = []
    for name, tensors in _indivisible_modules(model, "", no_split_classes):
        shared = next((owners[id(tensor)] for tensor in tensors if id(tensor) in owners), None)
        number = len(names) if shared is None else shared
        if shared is None:
            names.append([])
            sizes.append(0)
        names[number].append(name)
        for tensor in tensors:
            if id(tensor) not in owners:
                owners[id(tensor)] = number
                sizes[number] += tensor.nbytes
    with contextlib.suppress(AttributeError, NotImplementedError):  # some models' own code does not define them
        first = owners[id(model.get_input_embeddings().weight)]
    order = sorted(range(len(names)), key=lambda number: number != first)
    return [ModuleGroup(names=tuple(names[number]), bytes=sizes[number]) for number in order]


def _indivisible_modules(
    module: torch.nn.Module, name: str, no_split_classes: set[str]
) -> Iterator[tuple[str, list[torch.Tensor]]]:
    children = list(module.named_children())
    if name and (not children or type(module).__name__ in no_split_classes):
        yield name, [*module.parameters(), *module.buffers()]
        return
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    for child, tensor in own:
        yield _qualified_name(name, child), [tensor]
    for child, inner in children:
        if isinstance(module, torch.nn.ModuleList):
            yield _qualified_name(name, child), [*inner.parameters(), *inner.buffers()]
        else:
            yield from _indivisible_modules(inner, _qualified_name(name, child), no_split_classes)


def _qualified_name(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _capacities(
    memory: NodeMemory, offload: Offload, largest: int, *, can_use_disk: bool
) -> list[tuple[Device, float]]:
    """Return the bytes of weights that each device can hold, in the order in which devices are filled."""
    uses_disk = offload.to == DISK and can_use_disk
    fraction = _HOST_FRACTION if memory.gpu_bytes or uses_disk else 1.0
    host = memory.host_bytes * fraction if offload.host_gib is None else offload.host_gib * _GIB
    default = [size * _GPU_FRACTION for size in memory.gpu_bytes]
    gpus = [gib * _GIB for gib in offload.gpu_gib[: len(default)]] or default
    capacities: list[tuple[Device, float]] = [
        (number, size - largest * (number == 0)) for number, size in enumerate(gpus)
    ]
    capacities.append((CPU, host))
    return [*capacities, (DISK, float("inf"))] if uses_disk else capacities


def _by_name(groups: Sequence[ModuleGroup], devices: Sequence[Device], places: Sequence[int]) -> dict[str, Device]:
    """Return the device of each module, from the place of each group."""
    found: dict[str, Device] = {}
    for group, place in zip(groups, places, strict=True):
        found |= dict.fromkeys(group.names, devices[place])
    return found


def _out_of_memory_message(
    model_name: str, total: int, memory: NodeMemory, offload: Offload, *, can_use_disk: bool
) -> str:
    count = len(memory.gpu_bytes)
    devices = [f"{count} GPU{'s' * (count > 1)} of {max(memory.gpu_bytes) / _GIB:.1f} GiB"] if count else []
    if offload.to != "none" or not count:
        host = memory.host_bytes / _GIB if offload.host_gib is None else offload.host_gib
        devices.append(f"{host:.1f} GiB of host memory")
    fixes = ["a node with more memory"]
    if offload.to == "none" and count:
        fixes.insert(0, f"evaluate.offload = '{CPU}'")
    elif offload.to != DISK and can_use_disk:
        fixes.insert(0, f"evaluate.offload = '{DISK}'")
    return (
        f"{model_name}: its weights take {total / _GIB:.2f} GiB, which do not fit into {' and '.join(devices)} in"
        f" addition to the memory for computing. Try {' or '.join(fixes)}."
    )
