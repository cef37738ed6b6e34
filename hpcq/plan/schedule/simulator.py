"""Discrete-event simulation of Slurm for the arrays of a plan: start of each unit, makespan, critical path.

It follows `sched/backfill` with `priority/basic`. Of the eligible elements, the earliest submitted starts first, in the
order of its array. The first element that does not fit gets a reservation (EASY backfilling: one reservation per class;
Slurm plans more, but the elements after the first mostly have the same request). A later element may start on idle
resources if, by the time limits, it does not delay the reservation. Nodes are filled in their order. Not simulated:
other users, the pauses between Slurm's scheduling passes, and the seconds that Slurm takes to start a job.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import field

from hpcq.core.frozen import dataclass
from hpcq.manifest.profiles import Profile
from hpcq.plan.schedule.cluster_state import Node, Reservation, ResourceRequest, add, find_nodes, reserve, subtract
from hpcq.plan.schedule.resources import node_resources, unit_nodes, unit_resources
from hpcq.plan.units import PlannedArray

_Target = tuple[int, int | None]
"""Position of an array, and the index of an element or None: the whole array."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Result of a simulation.

    Attributes:
        wall_seconds: Seconds until the last unit ends.
        critical_path: Ids of units, first to last; each delays the next.
        starts: Seconds from submission to the start of each unit, by id.
    """

    wall_seconds: float
    critical_path: tuple[str, ...]
    starts: Mapping[str, float]


def simulate(arrays: Sequence[PlannedArray], profile: Profile, seconds: Mapping[str, float]) -> Timeline:
    """Simulate `arrays`, submitted in this order to an empty cluster.

    Dependencies on other arrays (submitted before) count as satisfied.

    Args:
        arrays: The arrays.
        profile: The cluster.
        seconds: Run time of each unit, by id.

    Raises:
        KeyError: A unit has no run time.
    """
    return _Simulation(arrays, profile, seconds).run()


def simulate_estimates(arrays: Sequence[PlannedArray], profile: Profile) -> Timeline | None:
    """Simulate with the units' own estimates. None: a unit has no estimate, or there are no units."""
    seconds = {unit.id: unit.seconds for array in arrays for unit in array.units}
    known = {unit: duration_s for unit, duration_s in seconds.items() if duration_s is not None}
    return simulate(arrays, profile, known) if known and len(known) == len(seconds) else None


@dataclass
class _ArrayState:
    """State of an array.

    Attributes:
        position: Place in the order of submission.
        array: The array.
        eligible: Indices of elements without open dependencies that have not started (a heap).
        running: Number of running elements.
    """

    position: int
    array: PlannedArray
    eligible: list[int] = field(default_factory=list)
    running: int = 0

    @property
    def can_start(self) -> bool:
        """Whether an element is eligible and the throttle allows it to start."""
        return bool(self.eligible) and self.running < (self.array.throttle or len(self.array.units))


class _Simulation:
    def __init__(self, arrays: Sequence[PlannedArray], profile: Profile, seconds: Mapping[str, float]) -> None:
        self._seconds = seconds
        self._arrays = [_ArrayState(position=position, array=array) for position, array in enumerate(arrays)]
        self._requests = [
            ResourceRequest(
                nodes=unit_nodes(profile, array.shape),
                per_node=unit_resources(profile, array.shape),
                limit_s=array.time_limit_minutes * 60.0,
            )
            for array in arrays
        ]
        self._nodes = {
            name: [Node(free=node_resources(profile, name)) for _ in range(offer.nodes)]
            for name, offer in profile.gpu_classes.items()
        }
        # By class and request, a heap of the positions of arrays that can start an element.
        self._ready: dict[str, dict[ResourceRequest, list[int]]] = defaultdict(lambda: defaultdict(list))
        self._nodes_of: dict[str, list[int]] = {}
        self._running: list[tuple[float, int, int]] = []
        self._starts: dict[str, float] = {}
        self._cause: dict[str, str | None] = {}
        self._freed: dict[str, tuple[float, str]] = {}
        self._released: dict[str, tuple[float, str]] = {}
        self._dependents = self._link_dependencies()

    def _link_dependencies(self) -> dict[_Target, list[_Target]]:
        """Return the dependents of each target, and release the arrays that depend on nothing."""
        position_of = {state.array.name: state.position for state in self._arrays}
        dependents: dict[_Target, list[_Target]] = defaultdict(list)
        self._unfinished = [len(state.array.units) for state in self._arrays]
        self._open_dependencies: dict[_Target, int] = defaultdict(int)
        for state in self._arrays:
            array = state.array
            # A merge that waits for an earlier one has the same name: that job is of an earlier submission.
            others = [name for name in array.depends_on if name in position_of and name != array.name]
            known = others if array.dependency != "none" else []
            pairs: list[tuple[_Target, _Target]] = []
            for needed in (position_of[name] for name in known):
                if array.dependency == "aftercorr":
                    pairs += [((needed, index), (state.position, index)) for index in range(len(array.units))]
                else:
                    pairs.append(((needed, array.element), (state.position, None)))
            for dependency, dependent in pairs:
                dependents[dependency].append(dependent)
                self._open_dependencies[dependent] += 1
            if not known:
                self._release(state.position, None)
        return dependents

    def run(self) -> Timeline:
        """Start what can start, advance to the next end of a unit, and repeat."""
        changed, now = set(self._ready), 0.0
        while True:
            for gpu_class in sorted(changed):
                self._schedule(gpu_class, now)
            if not self._running:
                break
            changed, now = set(), self._running[0][0]
            while self._running and self._running[0][0] <= now:
                _, position, element = heapq.heappop(self._running)
                changed |= self._end(position, element, now)
        return Timeline(wall_seconds=now, critical_path=self._critical_path(now), starts=self._starts)

    def _release(self, position: int, element: int | None) -> None:
        """Make one element of an array eligible, or all of them (None)."""
        state = self._arrays[position]
        could_start = state.can_start
        if element is None:
            state.eligible = list(range(len(state.array.units)))
        else:
            heapq.heappush(state.eligible, element)
        if state.can_start and not could_start:
            self._enqueue(position)

    def _enqueue(self, position: int) -> None:
        heapq.heappush(self._ready[self._arrays[position].array.shape.gpu_class][self._requests[position]], position)

    def _schedule(self, gpu_class: str, now: float) -> None:
        """Run one scheduling pass over a class: the earliest submitted first; drop a request once it does not fit."""
        ready, nodes = self._ready[gpu_class], self._nodes[gpu_class]
        heads = [(positions[0], request) for request, positions in ready.items() if positions]
        reservation: Reservation | None = None
        while heads:
            first = min(range(len(heads)), key=lambda index: heads[index][0])
            position, request = heads.pop(first)
            chosen = find_nodes(nodes, request, reservation, now)
            if chosen is None:
                if reservation is None and heads:
                    reservation = reserve(nodes, request, now)
                continue
            self._start(position, request, chosen, now)
            if reservation and now + request.limit_s > reservation.start:
                reservation.consume(chosen, request.per_node)
            positions = ready[request]
            if not self._arrays[position].can_start:
                heapq.heappop(positions)
            if positions:
                heads.append((positions[0], request))

    def _start(self, position: int, request: ResourceRequest, chosen: list[int], now: float) -> None:
        state = self._arrays[position]
        element = heapq.heappop(state.eligible)
        state.running += 1
        gpu_class, unit = state.array.shape.gpu_class, state.array.units[element].id
        for index in chosen:
            node = self._nodes[gpu_class][index]
            node.free = subtract(node.free, request.per_node)
            node.allocations[unit] = (now + request.limit_s, request.per_node)
        self._nodes_of[unit], self._starts[unit] = chosen, now
        self._cause[unit] = self._find_cause(position, element, gpu_class, now)
        heapq.heappush(self._running, (now + self._seconds[unit], position, element))

    def _find_cause(self, position: int, element: int, gpu_class: str, now: float) -> str | None:
        """Return the unit whose end let this one start now: a dependency, or else one that released resources."""
        array = self._arrays[position].array
        for when, unit in (
            self._released.get(array.units[element].id, (-1.0, "")),
            self._released.get(array.name, (-1.0, "")),
            self._freed.get(gpu_class, (-1.0, "")),
        ):
            if when == now:
                return unit
        return None

    def _end(self, position: int, element: int, now: float) -> set[str]:
        """End a unit. Return the classes in which units may start now."""
        state = self._arrays[position]
        unit, gpu_class = state.array.units[element].id, state.array.shape.gpu_class
        for index in self._nodes_of.pop(unit):
            node = self._nodes[gpu_class][index]
            _, taken = node.allocations.pop(unit)
            node.free = add(node.free, taken)
        self._freed[gpu_class] = (now, unit)
        could_start = state.can_start
        state.running -= 1
        if state.can_start and not could_start:
            self._enqueue(position)
        self._unfinished[position] -= 1
        ended: list[_Target] = [(position, element)] + ([] if self._unfinished[position] else [(position, None)])
        changed = {gpu_class}
        for dependent in (dependent for target in ended for dependent in self._dependents.get(target, ())):
            self._open_dependencies[dependent] -= 1
            if not self._open_dependencies[dependent]:
                array = self._arrays[dependent[0]].array
                self._released[array.name if dependent[1] is None else array.units[dependent[1]].id] = (now, unit)
                self._release(*dependent)
                changed.add(array.shape.gpu_class)
        return changed

    def _critical_path(self, end: float) -> tuple[str, ...]:
        """Return the units from the first to the one that ends last, each started by the end of the previous one."""
        units = [unit for state in self._arrays for unit in state.array.units]
        current: str | None = next(
            (unit.id for unit in reversed(units) if self._starts[unit.id] + self._seconds[unit.id] == end), None
        )
        path: list[str] = []
        visited: set[str] = set()
        while current is not None and current not in visited:
            path.append(current)
            visited.add(current)
            current = self._cause[current]
        return tuple(reversed(path))
