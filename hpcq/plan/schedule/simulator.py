"""What Slurm would do with a plan's arrays, second by second: when each unit starts, and what holds up the end.

Knows arrays, a profile and seconds; must not know Slurm's commands, files or the clock.

The rules, of `sched/backfill` with `priority/basic`: of what is eligible, the earliest submitted starts first, elements
of an array in their order. A unit that does not fit keeps nodes in mind (EASY: one reservation a class, for the first
that waits; Slurm's backfill plans more of them, yet the elements behind the first are mostly like it); a later one may
start on what is idle if that leaves the reservation untouched by the time limits. Nodes are filled in their order.
Left out: other users, Slurm's pauses between passes, and the seconds in which it starts a job.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hpcq.manifest.profiles import Profile
from hpcq.plan.schedule.cluster_state import Node, Reservation, Want, fitting, less, more, reserve
from hpcq.plan.schedule.resources import node_of, nodes_of, taken_of
from hpcq.plan.units import PlannedArray


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """wall_seconds: until the last unit ends. critical_path: units, first to last, each held up by the one before it.

    starts: seconds after the submission, by unit.
    """

    wall_seconds: float
    critical_path: tuple[str, ...]
    starts: Mapping[str, float]


def timeline(arrays: Sequence[PlannedArray], profile: Profile, seconds: Mapping[str, float]) -> Timeline:
    """When each unit of `arrays`, submitted in this order to an empty cluster, starts, if it takes its `seconds`.

    Arrays that are not among `arrays` (handed over earlier) count as ended.

    Raises:
        KeyError: a unit has no seconds.
    """
    return _Simulation(arrays, profile, seconds).run()


def expected(arrays: Sequence[PlannedArray], profile: Profile) -> Timeline | None:
    """The timeline by the units' own estimates; None where one has none, or nothing is to be done."""
    seconds = {unit.id: unit.seconds for array in arrays for unit in array.units}
    known = {unit: lasts for unit, lasts in seconds.items() if lasts is not None}
    return timeline(arrays, profile, known) if known and len(known) == len(seconds) else None


@dataclass
class _Queue:
    """An array as Slurm holds it: elements that may start, by index, and how many run."""

    place: int
    array: PlannedArray
    eligible: list[int] = field(default_factory=list)
    running: int = 0

    @property
    def is_open(self) -> bool:
        """Whether an element may start as far as the array is concerned."""
        return bool(self.eligible) and self.running < (self.array.throttle or len(self.array.units))


class _Simulation:
    def __init__(self, arrays: Sequence[PlannedArray], profile: Profile, seconds: Mapping[str, float]) -> None:
        self._seconds = seconds
        self._queues = [_Queue(place=place, array=array) for place, array in enumerate(arrays)]
        self._wants = [
            Want(
                nodes=nodes_of(profile, array.shape),
                taken=taken_of(profile, array.shape),
                limit_s=array.time_limit_minutes * 60.0,
            )
            for array in arrays
        ]
        self._nodes = {
            name: [Node(free=node_of(profile, name)) for _ in range(offer.nodes)]
            for name, offer in profile.gpu_classes.items()
        }
        # Arrays that may start something, a heap of their places for each want.
        self._lanes: dict[str, dict[Want, list[int]]] = defaultdict(lambda: defaultdict(list))
        self._on: dict[str, list[int]] = {}
        self._ends: list[tuple[float, int, int]] = []
        self._starts: dict[str, float] = {}
        self._cause: dict[str, str | None] = {}
        self._freed: dict[str, tuple[float, str]] = {}
        self._released: dict[str, tuple[float, str]] = {}
        self._waiting_for = self._followers()

    def _followers(self) -> dict[tuple[int, int | None], list[tuple[int, int | None]]]:
        """By (array, element or None: all of it), the (array, element or None: all) that its end lets go."""
        place_of = {queue.array.name: queue.place for queue in self._queues}
        followers: dict[tuple[int, int | None], list[tuple[int, int | None]]] = defaultdict(list)
        self._left = [len(queue.array.units) for queue in self._queues]
        self._needs: dict[tuple[int, int | None], int] = defaultdict(int)
        for queue in self._queues:
            array = queue.array
            needed = [place_of[name] for name in array.depends_on if name in place_of and array.dependency != "none"]
            pairs: list[tuple[tuple[int, int | None], tuple[int, int | None]]]
            if array.dependency == "aftercorr" and needed:
                pairs = [((one, index), (queue.place, index)) for one in needed for index in range(len(array.units))]
            else:
                pairs = [((one, array.element), (queue.place, None)) for one in needed]
            for before, after in pairs:
                followers[before].append(after)
                self._needs[after] += 1
            if not needed:
                self._release(queue.place, None)
        return followers

    def run(self) -> Timeline:
        """Start what can start, go to the next end, and again."""
        touched, now = set(self._lanes), 0.0
        while True:
            for gpu_class in sorted(touched):
                self._pass(gpu_class, now)
            if not self._ends:
                break
            touched, now = set(), self._ends[0][0]
            while self._ends and self._ends[0][0] <= now:
                _, place, element = heapq.heappop(self._ends)
                touched |= self._end(place, element, now)
        return Timeline(wall_seconds=now, critical_path=self._path(now), starts=self._starts)

    def _release(self, place: int, element: int | None) -> None:
        """An array's elements, or one of them, become eligible."""
        queue = self._queues[place]
        was_open = queue.is_open
        if element is None:
            queue.eligible = list(range(len(queue.array.units)))
        else:
            heapq.heappush(queue.eligible, element)
        if queue.is_open and not was_open:
            self._line_up(place)

    def _line_up(self, place: int) -> None:
        heapq.heappush(self._lanes[self._queues[place].array.shape.gpu_class][self._wants[place]], place)

    def _pass(self, gpu_class: str, now: float) -> None:
        """One pass of the scheduler over a class: each want until it fits no more, the earliest submitted first."""
        lanes, nodes = self._lanes[gpu_class], self._nodes[gpu_class]
        heads = [(lane[0], want) for want, lane in lanes.items() if lane]
        reservation: Reservation | None = None
        while heads:
            first = min(range(len(heads)), key=lambda index: heads[index][0])
            place, want = heads.pop(first)
            chosen = fitting(nodes, want, reservation, now)
            if chosen is None:
                if reservation is None and heads:
                    reservation = reserve(nodes, want, now)
                continue
            self._start(place, want, chosen, now)
            if reservation and now + want.limit_s > reservation.start:
                reservation.keep(chosen, want.taken)
            lane = lanes[want]
            if not self._queues[place].is_open:
                heapq.heappop(lane)
            if lane:
                heads.append((lane[0], want))

    def _start(self, place: int, want: Want, chosen: list[int], now: float) -> None:
        queue = self._queues[place]
        element = heapq.heappop(queue.eligible)
        queue.running += 1
        gpu_class, unit = queue.array.shape.gpu_class, queue.array.units[element].id
        for index in chosen:
            node = self._nodes[gpu_class][index]
            node.free = less(node.free, want.taken)
            node.ends[unit] = (now + want.limit_s, want.taken)
        self._on[unit], self._starts[unit] = chosen, now
        self._cause[unit] = self._why(place, element, gpu_class, now)
        heapq.heappush(self._ends, (now + self._seconds[unit], place, element))

    def _why(self, place: int, element: int, gpu_class: str, now: float) -> str | None:
        """The unit whose end let this one start now: the one that it needed, else the one that made room."""
        array = self._queues[place].array
        for when, unit in (
            self._released.get(array.units[element].id, (-1.0, "")),
            self._released.get(array.name, (-1.0, "")),
            self._freed.get(gpu_class, (-1.0, "")),
        ):
            if when == now:
                return unit
        return None

    def _end(self, place: int, element: int, now: float) -> set[str]:
        """A unit ends; the classes in which something may start for that."""
        queue = self._queues[place]
        unit, gpu_class = queue.array.units[element].id, queue.array.shape.gpu_class
        for index in self._on.pop(unit):
            node = self._nodes[gpu_class][index]
            _, taken = node.ends.pop(unit)
            node.free = more(node.free, taken)
        self._freed[gpu_class] = (now, unit)
        was_open = queue.is_open
        queue.running -= 1
        if queue.is_open and not was_open:
            self._line_up(place)
        self._left[place] -= 1
        keys: list[tuple[int, int | None]] = [(place, element)] + ([] if self._left[place] else [(place, None)])
        touched = {gpu_class}
        for after in (after for key in keys for after in self._waiting_for.get(key, ())):
            self._needs[after] -= 1
            if not self._needs[after]:
                array = self._queues[after[0]].array
                self._released[array.name if after[1] is None else array.units[after[1]].id] = (now, unit)
                self._release(*after)
                touched.add(array.shape.gpu_class)
        return touched

    def _path(self, end: float) -> tuple[str, ...]:
        units = [unit for queue in self._queues for unit in queue.array.units]
        last: str | None = next(
            (unit.id for unit in reversed(units) if self._starts[unit.id] + self._seconds[unit.id] == end), None
        )
        path: list[str] = []
        seen: set[str] = set()
        while last is not None and last not in seen:
            path.append(last)
            seen.add(last)
            last = self._cause[last]
        return tuple(reversed(path))
