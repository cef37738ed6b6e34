"""Assignment of a model's layers to GPUs: the rules that the planner assumes and the workers follow.

Parts of a model (embeddings, blocks, norm, head) stay whole and keep their order. vLLM splits by number of layers,
hpcq's transformers backend by bytes.
"""

from __future__ import annotations

from collections.abc import Sequence


def stage_layers(layers: int, stages: int) -> list[int]:
    """Return the number of layers of each pipeline stage.

    As in vLLM 0.32 (distributed/utils.py, get_pp_indices), remaining layers go to the stages before the last one,
    backwards.
    """
    counts = [layers // stages] * stages
    for back in range(2, layers % stages + 2):
        counts[-back] += 1
    return counts


def fill(sizes: Sequence[int], capacities: Sequence[float]) -> list[int] | None:
    """Fill place after place, in order.

    Args:
        sizes: Bytes of each part.
        capacities: Bytes that each place can hold.

    Returns:
        The index of each part's place; None: the parts do not fit.
    """
    places, place, left = [], 0, capacities[0]
    for size in sizes:
        while size > left:
            place += 1
            if place == len(capacities):
                return None
            left = capacities[place]
        left -= size
        places.append(place)
    return places


def balance(sizes: Sequence[int], capacities: Sequence[float]) -> list[int] | None:
    """Balance the parts over the places, so that the fullest place holds as few bytes as possible.

    Args:
        sizes: Bytes of each part.
        capacities: Bytes that each place can hold.

    Returns:
        The index of each part's place; None: the parts do not fit.
    """
    low, high = 0, sum(sizes)
    while low < high:
        middle = (low + high) // 2
        if fill(sizes, [min(capacity, middle) for capacity in capacities]) is None:
            low = middle + 1
        else:
            high = middle
    return fill(sizes, [min(capacity, low) for capacity in capacities])


def bytes_per_place(sizes: Sequence[int], places: Sequence[int], count: int) -> list[int]:
    """Return the bytes in each of `count` places, for parts that `fill` or `balance` has placed."""
    held = [0] * count
    for size, place in zip(sizes, places, strict=True):
        held[place] += size
    return held
