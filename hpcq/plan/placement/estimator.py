"""Cost estimates of candidate placements, calibrated by earlier attempts of the run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from math import prod

from hpcq.catalog.kernels import backend_title
from hpcq.catalog.tasks import synthetic_size
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import SYNTHETIC, Task, Variant
from hpcq.manifest import ResolvedManifest
from hpcq.manifest.resolved import EvaluateSettings
from hpcq.plan.cost import constants
from hpcq.plan.cost.calibration import UNCALIBRATED, Correction, RunHistory
from hpcq.plan.cost.evaluation import Cost, EvaluationSpec, Hardware, evaluation_cost, format_note
from hpcq.plan.cost.quantization import quantization_cost
from hpcq.plan.cost.staged_size import CHARACTERS_PER_TOKEN, DEFAULT_SIZE
from hpcq.plan.cost.tokens import Workload, estimate_workload
from hpcq.plan.placement.candidates import Placement, PlacementError, evaluation_placements, quantization_placements
from hpcq.plan.placement.requirements import EvaluationRequirements, evaluation_requirements
from hpcq.plan.placement.time_limits import padded_seconds
from hpcq.plan.schedule.resources import unit_cpus
from hpcq.plan.units import PhaseSeconds, Shape


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A possible placement of a variant, with the cost of its whole work there.

    Attributes:
        placement: Where it would run.
        cost: Seconds after calibration; None: unknown.
        uncalibrated: Seconds before calibration; None: unknown.
        correction: The calibration that was applied.
        note: Remark about the basis of the estimate.
    """

    placement: Placement
    cost: Cost | None = None
    uncalibrated: Cost | None = None
    correction: Correction = UNCALIBRATED
    note: str | None = None

    def seconds(self, shards: int = 1) -> float | None:
        """Return the seconds of one shard when the work is split into `shards`; None: unknown."""
        return None if self.cost is None else round(self.cost.seconds(shards), 1)

    def padded_seconds(self, shards: int = 1) -> float | None:
        """Return the seconds of one shard with slack, for its time limit; None: unknown."""
        return None if self.cost is None else round(padded_seconds(self.cost, shards), 1)

    def uncalibrated_estimate(self, shards: int = 1) -> PhaseSeconds | None:
        """Return the seconds of one shard by phase before calibration; None: unknown."""
        cost = self.uncalibrated
        if cost is None:
            return None
        return PhaseSeconds(
            start=round(cost.start_s, 3), load=round(cost.load_s, 3), work=round(cost.work_s / shards, 3)
        )

    @property
    def gpu_seconds(self) -> float:
        """GPU-seconds of the whole work in one job. CPUs count as one GPU; otherwise they would always be cheapest."""
        seconds = self.cost.seconds() if self.cost else 0.0
        return seconds * max(1, self.placement.shape.gpus)


@dataclass(frozen=True, kw_only=True)
class EvaluationCandidates:
    """Possible placements of a variant's evaluation.

    Attributes:
        settings: Settings of the backend that evaluates.
        candidates: All placements with that backend.
        fallback_reason: Why the manifest's own backend cannot evaluate the variant; None: it can.
    """

    settings: EvaluateSettings
    candidates: list[Candidate]
    fallback_reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """Cost estimates for one manifest.

    Attributes:
        resolved: The manifest.
        tasks: Its tasks that can run.
        history: Earlier attempts of the run.
    """

    resolved: ResolvedManifest
    tasks: tuple[Task, ...]
    history: RunHistory

    @cached_property
    def workload(self) -> Workload:
        """What the evaluation of one variant computes; it is the same for all variants.

        The unquantized variant reads the fidelity panel a second time, which is not counted here.
        """
        settings = self.resolved.evaluate
        if settings.backend == SYNTHETIC:
            sizes = [
                (task.panel.windows, task.panel.repeats)
                if task.panel
                else (*synthetic_size(task), task.sampling.repeats or 1)
                for task in self.tasks
            ]
            return Workload(requests=float(sum(map(prod, sizes))))
        return estimate_workload(self.tasks, shares_prefixes=settings.prefix_sharing)

    def evaluation_candidates(self, variant: Variant) -> EvaluationCandidates:
        """Return placements with the manifest's backend, or with the fallback if no class has code for the variant.

        The fallback is not used because of insufficient memory: users do not expect a much slower evaluation.

        Raises:
            PlacementError: Neither backend can evaluate the variant.
        """
        settings, fallback = self.resolved.evaluate, self.resolved.fallback
        try:
            return EvaluationCandidates(settings=settings, candidates=self._evaluations(variant, settings))
        except PlacementError as error:
            if fallback is None or not error.is_unsupported:
                raise
            try:
                candidates = self._evaluations(variant, fallback)
            except PlacementError as second:
                raise PlacementError(f"{error}; {backend_title(fallback.placement_backend)} {second}", "") from error
            return EvaluationCandidates(settings=fallback, candidates=candidates, fallback_reason=str(error))

    def quantization_candidates(self, variant: Variant) -> list[Candidate]:
        """Return the placements where the variant can be quantized.

        Raises:
            PlacementError: There is none.
        """
        model, scheme, calibration = self.resolved.shapes.get(variant.model), variant.scheme, variant.calibration
        candidates = []
        for placement in quantization_placements(self.resolved.profile, model, scheme, calibration):
            cost = None
            if scheme.tool == SYNTHETIC:
                cost = Cost()
            elif model is not None:
                hardware = self._hardware(placement.shape, self.resolved.quantize.device)
                cost = quantization_cost(model, scheme, calibration, hardware)
            candidates.append(Candidate(placement=placement, cost=cost, uncalibrated=cost))
        return candidates

    def _evaluations(self, variant: Variant, settings: EvaluateSettings) -> list[Candidate]:
        wanted = evaluation_requirements(self.resolved, settings, variant)
        placements = evaluation_placements(self.resolved.profile, wanted)
        return [self._evaluation(variant, settings, wanted, placement) for placement in placements]

    def _evaluation(
        self, variant: Variant, settings: EvaluateSettings, wanted: EvaluationRequirements, placement: Placement
    ) -> Candidate:
        if settings.backend == SYNTHETIC:
            cost = _synthetic_cost(dict(settings.synthetic_options), self.workload)
            return Candidate(placement=placement, cost=cost, uncalibrated=cost)
        if wanted.model is None:
            return Candidate(placement=placement)
        spec = EvaluationSpec(
            model=wanted.model,
            scheme=wanted.scheme,
            backend=wanted.backend,
            dtype=settings.dtype_for(variant.scheme),
            batch=1 if any(task.sampling.is_sampled for task in self.tasks) else settings.batch_size,
            demand=wanted.demand,
            kernel=placement.kernel,
            gpu_memory=placement.gpu_memory,
            offload=placement.offloaded,
            stored_bytes=wanted.stored_bytes,
        )
        hardware = self._hardware(placement.shape, settings.device)
        estimated = evaluation_cost(spec, self.workload, hardware)
        correction = self.history.correction(
            placement.shape.gpu_class, wanted.backend, variant.model.id, variant.scheme.name
        )
        cost = Cost(
            start_s=estimated.start_s * correction.start,
            load_s=estimated.load_s * correction.load,
            work_s=estimated.work_s * correction.work,
        )
        note = format_note(hardware.gpu, spec.dtype, spec.kernel) if hardware.gpu else None
        return Candidate(placement=placement, cost=cost, uncalibrated=estimated, correction=correction, note=note)

    def _hardware(self, shape: Shape, device: str) -> Hardware:
        profile = self.resolved.profile
        gpu_class, filesystem = profile.gpu_classes[shape.gpu_class], profile.filesystem
        rate = filesystem.read_gb_per_s or constants.READ_GB_PER_S
        if filesystem.total_read_gb_per_s:
            rate = min(rate, filesystem.total_read_gb_per_s / shape.nodes)
        gpu = gpu_class.gpu_spec if shape.gpus_per_node and device != "cpu" else None
        return Hardware(gpu=gpu, shape=shape, cores=unit_cpus(profile, shape), read_gb_per_s=rate)


def _synthetic_cost(options: Mapping[str, float], workload: Workload) -> Cost:
    """Return exactly the seconds that the synthetic backend sleeps."""
    return Cost(load_s=options.get("load_seconds", 0.0), work_s=workload.requests * options.get("request_seconds", 0.0))


def estimate_notes(workload: Workload, selected: Sequence[Candidate]) -> Iterator[str]:
    """Yield sentences about the basis of the estimates: GPUs, calibrating attempts, tasks without token averages."""
    yield from dict.fromkeys(candidate.note for candidate in selected if candidate.note)
    corrections: dict[str, dict[Correction, None]] = defaultdict(dict)
    for candidate in selected:
        if candidate.correction.attempts:
            corrections[", ".join(candidate.correction.gpu_classes)][candidate.correction] = None
    for gpu_classes, found in corrections.items():
        attempts = sum(correction.attempts for correction in found)
        ratios = list(dict.fromkeys(f"{ratio:.2g}x" for ratio in sorted(correction.work for correction in found)))
        ratio = ratios[0] if len(ratios) == 1 else f"{ratios[0]} to {ratios[-1]}"
        yield (
            f"calibrated from {attempts} attempt{'s' if attempts > 1 else ''} on {gpu_classes}:"
            f" measured {ratio} the estimate"
        )
    if workload.unknown_tasks:
        yield f"no token averages for {', '.join(workload.unknown_tasks)}: estimated at the mean of the other tasks"
    if workload.counted_tasks:
        names = ", ".join(workload.counted_tasks)
        yield f"{names}: approximate, from the characters of their prompts ({CHARACTERS_PER_TOKEN:g} per token)"
    if workload.assumed_tasks:
        names = ", ".join(workload.assumed_tasks)
        yield (
            f"{names}: not staged yet, so {DEFAULT_SIZE.documents} items per task are assumed; after `hpcq stage` the"
            " plan uses their number"
        )


def merge_seconds(workload: Workload, variants: int) -> float:
    """Estimate the seconds of merging the responses of `variants` variants."""
    return round(constants.MERGE_S + variants * workload.requests * constants.MERGE_RESPONSE_S, 1)


def results_bytes(workload: Workload, variants: int) -> int:
    """Estimate the bytes of the responses of `variants` variants, in segments and again in the merged results."""
    variant_bytes = (
        workload.requests * constants.MIN_RESPONSE_BYTES + workload.generated_tokens * constants.TEXT_BYTES_PER_TOKEN
    )
    variant_bytes += workload.panel_positions * constants.PANEL_POSITION_BYTES
    return round(2 * variants * variant_bytes)
