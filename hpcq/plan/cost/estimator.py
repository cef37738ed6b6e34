"""Every place that a unit can have with what it would cost there, put right by what earlier attempts took.

Knows a resolved manifest, the catalog and what a run's folder told; decides nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from hpcq.catalog.kernels import title_of
from hpcq.catalog.tasks import rehearsed_size
from hpcq.core.work import Task, Variant
from hpcq.manifest import Resolved
from hpcq.manifest.resolved import EvaluateSettings
from hpcq.plan.cost import constants
from hpcq.plan.cost.calibration import AS_RECKONED, Earlier, Ratio
from hpcq.plan.cost.evaluation import Cost, Job, Machine, evaluation_cost
from hpcq.plan.cost.quantization import quantization_cost
from hpcq.plan.cost.workload import Workload, workload_of
from hpcq.plan.placement.place import evaluation_options, quantization_options
from hpcq.plan.placement.records import CannotPlace, Evaluation, Placement
from hpcq.plan.placement.requirements import evaluation_of
from hpcq.plan.placement.time_limits import ample_seconds
from hpcq.plan.schedule.resources import cores_of
from hpcq.plan.units import Reckoned, Shape


@dataclass(frozen=True, kw_only=True)
class Option:
    """A place with the cost of the whole work there. reckoned: before attempts put it right. None: unknown."""

    placement: Placement
    cost: Cost | None = None
    reckoned: Cost | None = None
    ratio: Ratio = AS_RECKONED

    def seconds(self, shards: int = 1) -> float | None:
        """Of one of so many shards; None: unknown."""
        return None if self.cost is None else round(self.cost.seconds(shards), 1)

    def ample_seconds(self, shards: int = 1) -> float | None:
        """What a time limit should allow one of so many shards; None: unknown."""
        return None if self.cost is None else round(ample_seconds(self.cost, shards), 1)

    def parts(self, shards: int = 1) -> Reckoned | None:
        """What was reckoned for one of so many shards."""
        cost = self.reckoned
        if cost is None:
            return None
        return Reckoned(start=round(cost.start, 3), load=round(cost.load, 3), work=round(cost.work / shards, 3))

    @property
    def gpu_seconds(self) -> float:
        """That one job of all the work takes. A place without GPUs counts as one, or it would always be cheapest."""
        seconds = self.cost.seconds() if self.cost else 0.0
        return seconds * max(1, self.placement.shape.gpus)


@dataclass(frozen=True, kw_only=True)
class Ways:
    """How a variant can be evaluated, and everywhere where. because: why not by the back end of the manifest."""

    settings: EvaluateSettings
    options: list[Option]
    because: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reckoner:
    """One manifest's costs. tasks: those that can run."""

    resolved: Resolved
    tasks: tuple[Task, ...]
    earlier: Earlier

    @cached_property
    def workload(self) -> Workload:
        """What one variant's evaluation computes; the same for all."""
        settings = self.resolved.evaluate
        if settings.backend == "synthetic":
            sizes = [rehearsed_size(task.name, task.limit) for task in self.tasks]
            return Workload(requests=float(sum(documents * requests for documents, requests in sizes)))
        return workload_of(self.tasks, shares_prefixes=settings.prefix_sharing)

    def evaluations(self, variant: Variant) -> Ways:
        """By the back end that the manifest names; where that has no code for the variant on any class, the other one.

        Too little memory is no such reason: to compute it more slowly elsewhere would be a surprise.

        Raises:
            CannotPlace: neither can.
        """
        settings, other = self.resolved.evaluate, self.resolved.fallback
        try:
            return Ways(settings=settings, options=self._evaluations(variant, settings))
        except CannotPlace as problem:
            if other is None or not problem.is_backend:
                raise
            try:
                options = self._evaluations(variant, other)
            except CannotPlace as second:
                raise CannotPlace(f"{problem}; {title_of(other.placed_as)} {second}", "") from problem
            return Ways(settings=other, options=options, because=str(problem))

    def quantizations(self, variant: Variant) -> list[Option]:
        """Where the variant can be made.

        Raises:
            CannotPlace: nowhere.
        """
        model, scheme, calibration = self.resolved.shapes.get(variant.model.id), variant.scheme, variant.calibration
        options = []
        for placement in quantization_options(self.resolved.profile, model, scheme, calibration):
            cost = None
            if scheme.tool == "synthetic":
                cost = Cost()
            elif model is not None:
                cost = quantization_cost(
                    model, scheme, calibration, self._machine(placement.shape, self.resolved.quantize.device)
                )
            options.append(Option(placement=placement, cost=cost, reckoned=cost))
        return options

    def _evaluations(self, variant: Variant, settings: EvaluateSettings) -> list[Option]:
        wanted = evaluation_of(self.resolved, settings, variant)
        placements = evaluation_options(self.resolved.profile, wanted)
        return [self._evaluation(variant, settings, wanted, placement) for placement in placements]

    def _evaluation(
        self, variant: Variant, settings: EvaluateSettings, wanted: Evaluation, placement: Placement
    ) -> Option:
        if settings.backend == "synthetic":
            cost = _rehearsed(dict(settings.pace), self.workload)
            return Option(placement=placement, cost=cost, reckoned=cost)
        if wanted.model is None:
            return Option(placement=placement)
        job = Job(
            model=wanted.model,
            scheme=wanted.scheme,
            backend=wanted.backend,
            dtype=settings.dtype_for(variant.scheme),
            batch=settings.batch_size,
            demand=wanted.demand,
            kernel=placement.kernel,
            need=placement.need,
            offloaded=placement.offloaded,
        )
        reckoned = evaluation_cost(job, self.workload, self._machine(placement.shape, settings.device))
        ratio = self.earlier.ratio(placement.shape.gpu_class, wanted.backend, variant.model.id, variant.scheme.name)
        cost = replace(
            reckoned,
            start=reckoned.start * ratio.start,
            load=reckoned.load * ratio.load,
            work=reckoned.work * ratio.work,
        )
        return Option(placement=placement, cost=cost, reckoned=reckoned, ratio=ratio)

    def _machine(self, shape: Shape, device: str) -> Machine:
        profile = self.resolved.profile
        offer, files = profile.gpu_classes[shape.gpu_class], profile.filesystem
        rate = files.read_gb_per_s or constants.READ_GB_PER_S
        if files.total_read_gb_per_s:
            rate = min(rate, files.total_read_gb_per_s / shape.nodes)
        gpu = offer.device if shape.gpus_per_node and device != "cpu" else None
        return Machine(gpu=gpu, shape=shape, cores=cores_of(profile, shape), read_gb_per_s=rate)


def _rehearsed(pace: Mapping[str, float], workload: Workload) -> Cost:
    """Exactly what the synthetic back end sleeps."""
    return Cost(load=pace.get("load_seconds", 0.0), work=workload.requests * pace.get("request_seconds", 0.0))


def reckoning_sentences(workload: Workload, chosen: Sequence[Option]) -> Iterator[str]:
    """What the seconds rest on: attempts, tasks without figures, or rates that nobody has measured there."""
    ratios: dict[str, dict[Ratio, None]] = defaultdict(dict)
    for option in chosen:
        if option.ratio.attempts:
            ratios[option.placement.shape.gpu_class][option.ratio] = None
    for name, found in ratios.items():
        attempts = sum(ratio.attempts for ratio in found)
        told = list(dict.fromkeys(_times(ratio.work) for ratio in sorted(found, key=lambda ratio: ratio.work)))
        between = told[0] if len(told) == 1 else f"{told[0]} to {told[-1]}"
        yield f"calibrated by {attempts} attempt{'s' if attempts > 1 else ''} on {name}: {between} than reckoned"
    if workload.without:
        yield f"no figures of {', '.join(workload.without)}: reckoned as the mean of the others"


def _times(ratio: float) -> str:
    return f"{ratio:.2g} x slower" if ratio >= 1 else f"{1 / ratio:.2g} x faster"


def merge_seconds(workload: Workload, variants: int) -> float:
    """Of a merge of the responses of so many variants."""
    return round(constants.MERGE_S + variants * workload.requests * constants.MERGED_RESPONSE_S, 1)


def results_bytes(workload: Workload, variants: int) -> int:
    """Of the responses of so many variants, in segments and once more merged."""
    a_variant = (
        workload.requests * constants.SMALLEST_RESPONSE_BYTES + workload.written * constants.TEXT_BYTES_PER_TOKEN
    )
    return round(2 * variants * a_variant)
