"""Where a model's layers lie: dealt to the GPUs, and what they have no room for to the host's memory and a disk.

Knows modules, bytes and devices; reads no checkpoint, and must not know tasks or requests.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hpcq.core.errors import WorkFailed
from hpcq.core.work import Offload

CPU, DISK = "cpu", "disk"
Device = int | str
"""A GPU's number, or cpu, or disk: what a device map of transformers' holds."""

_GIB = 2**30
_SHARE_ALONE = 0.92
"""Of a GPU's memory that weights may fill where nothing may lie elsewhere; more leaves nothing to compute with."""
_SHARE_OF_GPU = 0.75
_SHARE_OF_HOST = 0.75
"""What is taken where the plan says nothing: the rest is for KV cache, activations and the process."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of each GPU, and of the host's memory that the job has."""

    gpus: tuple[int, ...]
    host: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """Modules that lie on one device: one, or several that share weights."""

    names: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Device of each module, by name; `is_whole` where it is one. host, disk: bytes of weights off the GPUs.

    On a machine without GPUs what lies in the host's memory is at home there, and not counted.
    """

    devices: Mapping[str, Device]
    host: int = 0
    disk: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether one device holds all of it."""
        return len(set(self.devices.values())) == 1 and not self.disk

    @property
    def offloaded_gib(self) -> float:
        """Weights that are brought to where they are multiplied for each pass."""
        return round((self.host + self.disk) / _GIB, 2)


def memory_here(*, on_gpu: bool) -> Memory:
    """The memory of this node's GPUs, and what Slurm gives the job of its own (all of it, where nothing is said)."""
    devices = range(torch.cuda.device_count() if on_gpu else 0)
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    asked_mib = os.environ.get("SLURM_MEM_PER_NODE", "")
    if asked_mib.isdecimal() and int(asked_mib):
        host = min(host, int(asked_mib) * 2**20)
    return Memory(gpus=tuple(torch.cuda.get_device_properties(one).total_memory for one in devices), host=host)


def spread(model: Any, memory: Memory, offload: Offload, *, title: str, has_disk: bool = True) -> Spread:
    """Deal the layers of `model` (on `meta`: its sizes are enough), in their order. has_disk: one may hold its weights.

    Without offloading the fullest GPU holds as little as can be. With it, GPUs are filled one by one, and the first
    keeps room for the largest tensor that is brought to it.

    Raises:
        WorkFailed: they do not fit where they may lie; its cause is a MemoryError, by which attempts are judged.
    """
    parts = parts_of(model)
    total = sum(part.bytes for part in parts)
    devices = None
    if memory.gpus and (offload.to == "none" or not offload.gpu_gib):
        share = _SHARE_ALONE if offload.to == "none" else _SHARE_OF_GPU
        devices = _level(parts, [int(one * share) for one in memory.gpus])
    if devices is None and (offload.to != "none" or not memory.gpus):
        largest = max(parameter.nbytes for parameter in model.parameters())
        rooms = _rooms(memory, offload, largest, has_disk=has_disk)
        devices = _fill(parts, rooms)
        if devices is not None and devices[parts[0].names[0]] != rooms[0][0]:
            devices = None  # embeddings must be where texts begin
    if devices is None:
        sentence = _sentence(title, total, memory, offload, has_disk=has_disk)
        raise WorkFailed(sentence) from MemoryError(f"{total} bytes of weights")
    held = {device: sum(part.bytes for part in parts if devices[part.names[0]] == device) for device in (CPU, DISK)}
    return Spread(devices=devices, host=held[CPU] if memory.gpus else 0, disk=held[DISK])


def parts_of(model: Any) -> list[Part]:
    """What cannot be divided, in the model's order but for embeddings, which come first. Blocks of a list are whole."""
    whole = set(getattr(model, "_no_split_modules", None) or ())
    owners: dict[int, int] = {}
    first = 0
    names: list[list[str]] = []
    sizes: list[int] = []
    for name, tensors in _pieces(model, "", whole):
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
    with contextlib.suppress(AttributeError, NotImplementedError):  # some models' own code does not tell
        first = owners[id(model.get_input_embeddings().weight)]
    order = sorted(range(len(names)), key=lambda number: number != first)
    return [Part(names=tuple(names[number]), bytes=sizes[number]) for number in order]


def _pieces(module: torch.nn.Module, name: str, whole: set[str]) -> Iterator[tuple[str, list[torch.Tensor]]]:
    children = list(module.named_children())
    if name and (not children or type(module).__name__ in whole):
        yield name, [*module.parameters(), *module.buffers()]
        return
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    for child, tensor in own:
        yield _joined(name, child), [tensor]
    for child, inner in children:
        if isinstance(module, torch.nn.ModuleList):
            yield _joined(name, child), [*inner.parameters(), *inner.buffers()]
        else:
            yield from _pieces(inner, _joined(name, child), whole)


def _joined(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _rooms(memory: Memory, offload: Offload, largest: int, *, has_disk: bool) -> list[tuple[Device, float]]:
    """Bytes of weights that each device may hold, in the order in which they are filled."""
    is_spilling = offload.to == DISK and has_disk
    share = _SHARE_OF_HOST if memory.gpus or is_spilling else 1.0
    host = memory.host * share if offload.host_gib is None else offload.host_gib * _GIB
    usual = [one * _SHARE_OF_GPU for one in memory.gpus]
    gpus = [gib * _GIB for gib in offload.gpu_gib[: len(usual)]] or usual
    rooms: list[tuple[Device, float]] = [(number, room - largest * (number == 0)) for number, room in enumerate(gpus)]
    rooms.append((CPU, host))
    return [*rooms, (DISK, float("inf"))] if is_spilling else rooms


def _fill(parts: Sequence[Part], rooms: Sequence[tuple[Device, float]]) -> dict[str, Device] | None:
    """Device after device, in order; None: they do not hold all."""
    found: dict[str, Device] = {}
    place, left = 0, rooms[0][1]
    for part in parts:
        while part.bytes > left:
            place += 1
            if place == len(rooms):
                return None
            left = rooms[place][1]
        left -= part.bytes
        found |= dict.fromkeys(part.names, rooms[place][0])
    return found


def _level(parts: Sequence[Part], rooms: Sequence[int]) -> dict[str, Device] | None:
    """Over GPUs, the fullest with as little as can be; None: they do not hold all."""
    low, high = 0, sum(part.bytes for part in parts)
    while low < high:
        middle = (low + high) // 2
        if _fill(parts, [(number, min(room, middle)) for number, room in enumerate(rooms)]) is None:
            low = middle + 1
        else:
            high = middle
    return _fill(parts, [(number, min(room, low)) for number, room in enumerate(rooms)])


def _sentence(title: str, total: int, memory: Memory, offload: Offload, *, has_disk: bool) -> str:
    count = len(memory.gpus)
    places = [f"{count} GPU{'s' * (count > 1)} of {max(memory.gpus) / _GIB:.1f} GiB"] if count else []
    if offload.to != "none" or not count:
        host = memory.host / _GIB if offload.host_gib is None else offload.host_gib
        places.append(f"{host:.1f} GiB of the host's memory")
    cures = ["a node with more memory"]
    if offload.to == "none" and count:
        cures.insert(0, f"evaluate.offload = '{CPU}'")
    elif offload.to != DISK and has_disk:
        cures.insert(0, f"evaluate.offload = '{DISK}'")
    return (
        f"{title}: its weights take {total / _GIB:.2f} GiB, for which {' and '.join(places)} have no room beside what"
        f" computing takes; try {' or '.join(cures)}."
    )
