"""What of a model's weights the GPUs of a node have no room for, and where it lies: in the host's memory, on a disk.

Knows how the accelerate back end deals layers; must not know a cluster, nor which place is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from hpcq.catalog.gpus import GPU
from hpcq.catalog.models import ModelShape
from hpcq.core.work import Scheme
from hpcq.plan.memory.gpu_memory import Demand, Need, Split, large, loaded, need_of
from hpcq.plan.memory.weights import GIB, block_bytes, embedding_bytes, head_bytes, linear_bytes, value_bytes

Where = Literal["cpu", "disk"]

PROCESS_BYTES = 4 * GIB
"""Of the host's memory for a process and its libraries, and for what loading holds for a moment. An assumption."""

HOST_SHARE = 0.9
"""Of the rest, that weights may fill."""

KEPT_SHARE = 1 / 16
"""Of the first GPU, that kept prefixes may fill (hpcq/evaluate/backends/transformers/prefix_scoring/scorer.py)."""


@dataclass(frozen=True, kw_only=True)
class Offloaded:
    """Bytes of weights in the host's memory and on the node's disk; `total` is all of the model's.

    to: cpu or disk. gpu_rooms: what weights may fill of each GPU. host_room: and of the host's memory. host_asked_gib:
    what a job needs to ask for, for that. need: of the fullest GPU; None: there is none.
    """

    to: Where
    host: int
    disk: int
    total: int
    gpu_rooms: tuple[int, ...]
    host_room: int
    host_asked_gib: float
    need: Need | None

    @property
    def sentence(self) -> str:
        """Where the weights are and why, in words."""
        places = (
            [f"{self.host / GIB:.1f} GiB of its weights in the host's memory"] if self.host and self.gpu_rooms else []
        )
        if self.disk:
            places.append(f"{self.disk / GIB:.1f} GiB {'' if places else 'of its weights '}on the node's disk")
        return (
            f"{' and '.join(places)} are brought to the {'GPU' if self.gpu_rooms else 'memory'} for each pass, which is"
            f" slow, because no class holds all {self.total / GIB:.1f} GiB"
        )


def offloaded(
    model: ModelShape, scheme: Scheme, demand: Demand, to: Where, *, gpu: GPU | None, gpus: int, host_gib: float
) -> Offloaded | None:
    """How the weights lie on so many GPUs (0: on a node's cores); None: not even so they fit.

    scheme: as the weights are held, decompressed. to: cpu or disk. host_gib: that a job may have.
    """
    scheme = loaded(scheme, demand)
    largest = max(
        embedding_bytes(model, value_bytes(scheme)), *(linear_bytes(linear, scheme) for linear in model.linears)
    )
    needs = list(_beside_weights(model, scheme, demand, gpu, gpus)) if gpu else []
    rooms = [int(gpu.memory_gib * demand.share * GIB) - need.total for need in needs] if gpu else []
    host = int((host_gib * GIB - PROCESS_BYTES) * HOST_SHARE)
    if not gpu:
        beside = need_of(model, scheme, Split(), demand)
        host -= beside.kv_cache + beside.activations
    places = [float(room) for room in rooms]
    if places:
        places[0] -= largest  # it is where offloaded weights are brought to
    places += [host, math.inf] if to == "disk" else [host]
    held = _filled(_parts(model, scheme), places)
    if held is None:
        return None
    on_gpus, on_host = held[: len(rooms)], held[len(rooms)]
    on_disk = held[len(rooms) + 1] if to == "disk" else 0
    # The worker counts buffers, too: it may be one block off.
    host_room = min(host, on_host + 2 * block_bytes(model, scheme, 0))
    fullest = None
    if needs:
        brought = [largest, *(0 for _ in needs[1:])]
        fullest = max(
            (
                Need(weights=held + more, kv_cache=one.kv_cache, activations=one.activations, engine=one.engine)
                for one, held, more in zip(needs, on_gpus, brought, strict=True)
            ),
            key=lambda need: need.total,
        )
    return Offloaded(
        to=to,
        host=on_host,
        disk=on_disk,
        total=sum(held),
        gpu_rooms=tuple(rooms),
        host_room=host_room,
        host_asked_gib=host_gib - (host - host_room) / HOST_SHARE / GIB,
        need=fullest,
    )


def _beside_weights(model: ModelShape, scheme: Scheme, demand: Demand, gpu: GPU, gpus: int) -> Iterator[Need]:
    """Of each GPU in turn: the first computes all blocks that are offloaded, so it may hold the KV cache of all."""
    is_large = large(gpu.memory_gib, gpu.name)
    share = need_of(model, scheme, Split(stages=gpus), demand, is_large_gpu=is_large)
    whole = need_of(model, scheme, Split(), demand, is_large_gpu=is_large)
    for number in range(gpus):
        cache = share.kv_cache if number else max(whole.kv_cache, int(gpu.memory_gib * KEPT_SHARE * GIB))
        yield Need(weights=0, kv_cache=cache, activations=share.activations, engine=share.engine)


def _parts(model: ModelShape, scheme: Scheme) -> list[int]:
    """Bytes of what is not divided, in order."""
    value = value_bytes(scheme)
    blocks = [block_bytes(model, scheme, block) for block in range(model.layers)]
    ends = [] if model.tied_embeddings else [head_bytes(model, scheme)]
    return [embedding_bytes(model, value), *blocks, model.hidden * value, *ends]


def _filled(parts: Sequence[int], rooms: Sequence[float]) -> list[int] | None:
    """Bytes in each place, filled in order; None: they do not hold all, or the first not even the embeddings."""
    held, place = [0 for _ in rooms], 0
    for part in parts:
        while held[place] + part > rooms[place]:
            place += 1
            if place == len(rooms):
                return None
        held[place] += part
    return held if held[0] else None
