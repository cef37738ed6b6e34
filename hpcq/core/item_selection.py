"""Selection of the items of a task: a random sample, or a list of their numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from hpcq.core.addressing import unaddressed
from hpcq.core.frozen import dataclass


@dataclass(frozen=True, kw_only=True)
class ItemSelection:
    """A sample, or a list, of the items of a task.

    Attributes:
        sample: Number of items of a random sample; 0: `listed` has the items.
        seed: Seed of the sample.
        is_stratified: The sample has the same number of items of each subtask; of smaller subtasks, all items.
        listed: Numbers of items, counted from 0 in the order of the data set, by subtask: '0-4,7'.
        is_of_task: The manifest has the sample in the options of the task, not in those of all tasks.
    """

    sample: int = 0
    seed: int = 0
    is_stratified: bool = True
    listed: tuple[tuple[str, str], ...] = ()
    is_of_task: bool = unaddressed(False)

    @property
    def count(self) -> int:
        """Number of items that are requested; the task may have fewer."""
        return self.sample or sum(len(parse_ranges(text)) for _, text in self.listed)

    def choose(self, sizes: Mapping[str, int]) -> dict[str, list[int]]:
        """Return the chosen items of each subtask, ascending; a subtask may have none.

        A sample is the items with the smallest digests of seed, subtask and number: a larger sample of the same seed
        contains it, and other subtasks do not change it.

        Args:
            sizes: Number of items of each subtask.
        """
        if not self.sample:
            listed = dict(self.listed)
            return {name: parse_ranges(listed.get(name, "")) for name in sizes}
        ranked = {name: sorted(range(size), key=lambda item: self._rank(name, item)) for name, size in sizes.items()}
        if self.is_stratified:
            shares = _even_shares(self.sample, sizes)
            return {name: sorted(items[: shares[name]]) for name, items in ranked.items()}
        every = [(self._rank(name, item), name, item) for name, items in ranked.items() for item in items]
        chosen: dict[str, list[int]] = {name: [] for name in sizes}
        for _, name, item in sorted(every)[: self.sample]:
            chosen[name].append(item)
        return {name: sorted(items) for name, items in chosen.items()}

    def _rank(self, name: str, item: int) -> bytes:
        return hashlib.sha256(f"{self.seed}\0{name}\0{item}".encode()).digest()


def _even_shares(total: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Distribute `total` evenly over the subtasks with items left; the first ones get the remainder."""
    shares = dict.fromkeys(sizes, 0)
    open_names = [name for name, size in sizes.items() if size]
    while open_names and total > 0:
        room = min(sizes[name] - shares[name] for name in open_names)
        each = max(1, min(total // len(open_names), room))
        for name in open_names[:total]:
            shares[name] += each
        total -= each * min(len(open_names), total)
        open_names = [name for name in open_names if shares[name] < sizes[name]]
    return shares


def format_ranges(numbers: Iterable[int]) -> str:
    """Format {0, 1, 2, 7} as '0-2,7'."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def parse_ranges(text: str) -> list[int]:
    """Return the numbers in '0-2,7', ascending."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
