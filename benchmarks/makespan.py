"""Simulated makespan of the planner's arrays, compared with a lower bound and with one job per model and task.

The real planner plans random manifests for random clusters. In the simulation, each unit takes the time that the
planner estimates. No cluster is needed. `python benchmarks/makespan.py SEED …` prints single cases.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from parts.lower_bound import lower_bound
from parts.thresholds import Threshold, print_thresholds

from hpcq.core.work_records import UnitKind
from hpcq.manifest import ResolvedManifest, load, resolve
from hpcq.plan.arrays import make_arrays
from hpcq.plan.planner import make_plan
from hpcq.plan.schedule.simulator import simulate
from hpcq.plan.units import Plan, PlannedArray, PlannedUnit

CASES = 100
AUTO = '"auto"'
GPUS = ("H100-80", "H200-141", "A100-80", "A100-40", "RTX6000Ada-48", "A6000-48", "L40S-48", "B200-180")
MODELS = (
    "meta-llama/Llama-3.2-1B-Instruct",
    "meta-llama/Llama-3.2-3B-Instruct",
    "meta-llama/Llama-2-7b-chat-hf",
    "meta-llama/Llama-2-13b-chat-hf",
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.1-70B-Instruct",
    "meta-llama/Llama-3.1-405B-Instruct",
    "google/gemma-2b-it",
    "google/gemma-7b-it",
)
SCHEMES = ("bf16", "fp8", "gptq-w4a16", "gptq-w8a16", "awq-w4a16", "smoothquant-w8a8")


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """Result of one case.

    Attributes:
        seed: Seed of the case.
        objective: `plan.objective` of the manifest.
        shards: `evaluate.shards` of the manifest.
        units: Number of units.
        arrays: Number of arrays.
        wall_s: Makespan of the plan.
        bound_s: Lower bound of the makespan.
        per_task_wall_s: Makespan with one job per model and task.
        gpu_hours: GPU-hours of the plan.
        per_task_gpu_hours: GPU-hours with one job per model and task.
    """

    seed: int
    objective: str
    shards: int | str
    units: int
    arrays: int
    wall_s: float
    bound_s: float
    per_task_wall_s: float
    gpu_hours: float
    per_task_gpu_hours: float

    @property
    def ratio(self) -> float:
        """Makespan divided by the lower bound."""
        return self.wall_s / self.bound_s


def write_case(seed: int, folder: Path) -> Path:
    """Write a manifest and a cluster profile; every number follows from the seed."""
    rng = random.Random(seed)  # noqa: S311 - cases, not secrets
    folder.mkdir()
    lines = ['name = "random"', 'scheduler = "slurm"', "[slurm]", "time_limit_minutes = 2880"]
    gpus = rng.sample(GPUS, rng.randint(1, 4))
    quantizes_separately = len(gpus) > 1 and rng.random() < 1 / 3
    for number, gpu in enumerate(gpus):
        gpus_per_node = rng.choice((4, 8))
        nodes = rng.randint(1, 8)
        roles = ["quantize", "evaluate", "merge"]
        if quantizes_separately:
            roles = ["quantize", "merge"] if number == 0 else ["evaluate"]
        lines += [f'[gpu_classes."{gpu.lower()}"]', f'gpu = "{gpu}"', f"nodes = {nodes}", "cpus_per_node = 64"]
        lines += [f"gpus_per_node = {gpus_per_node}", "memory_gib = 2000", f"roles = {json.dumps(roles)}"]
        if rng.random() < 1 / 4:
            lines.append(f"throttle = {rng.randint(2, nodes * gpus_per_node)}")
    (folder / "cluster.toml").write_text("\n".join(lines) + "\n")
    models = rng.sample(MODELS, rng.randint(1, len(MODELS)))
    schemes = ["bf16", *rng.sample(SCHEMES[1:], rng.randint(0, len(SCHEMES) - 1))]
    suites = rng.choice((["openllm-v1"], ["openllm-v2"], ["openllm-v1", "openllm-v2"]))
    path = folder / "manifest.toml"
    path.write_text(
        '[run]\nname = "random"\n[cluster]\nprofile = "cluster.toml"\n'
        + "".join(f'[[models]]\nid = "{model}"\n' for model in models)
        + f"[schemes]\nuse = {json.dumps(schemes)}\n[tasks]\nsuites = {json.dumps(suites)}\n"
        + f'[plan]\nobjective = "{rng.choice(("gpu-hours", "makespan"))}"\n'
        + f'[evaluate]\nbackend = "vllm"\nshards = {rng.choice((AUTO, AUTO, AUTO, 1, 2, 4))}\n'
    )
    return path


def run_case(seed: int, folder: Path) -> CaseResult | None:
    """Plan and simulate a case; None if no unit fits on the cluster."""
    resolved = resolve(load(write_case(seed, folder)))
    plan = make_plan(resolved)
    units = plan.units
    if not units:
        return None
    seconds = seconds_of(units)
    arrays = make_arrays(units, resolved.profile)
    per_task = one_job_per_task(resolved, plan)
    per_task_seconds = seconds_of([unit for job in per_task for unit in job.units])
    return CaseResult(
        seed=seed,
        objective=resolved.manifest.plan.objective,
        shards=resolved.evaluate.shards,
        units=len(units),
        arrays=len(arrays),
        wall_s=simulate(arrays, resolved.profile, seconds).wall_seconds,
        bound_s=lower_bound(arrays, resolved.profile, seconds),
        per_task_wall_s=simulate(per_task, resolved.profile, per_task_seconds).wall_seconds,
        gpu_hours=gpu_hours(arrays, seconds),
        per_task_gpu_hours=gpu_hours(per_task, per_task_seconds),
    )


def seconds_of(units: Sequence[PlannedUnit]) -> dict[str, float]:
    """Return the seconds by unit. All are known, because all models here are in the catalog."""
    return {unit.id: unit.seconds for unit in units if unit.seconds is not None}


def one_job_per_task(resolved: ResolvedManifest, plan: Plan) -> list[PlannedArray]:
    """Return the same work as a script of sbatch calls would submit it: one job per model and task, without shards.

    Jobs are in the manifest's order. The planner places each of them with the manifest's objective.
    """
    whole = replace(resolved, evaluate=replace(resolved.evaluate, shards=1))
    evaluations: dict[str, list[PlannedUnit]] = defaultdict(list)
    for task in resolved.tasks:
        for unit in make_plan(replace(whole, tasks=(task,))).units:
            if unit.kind is UnitKind.EVALUATE and unit.variant:
                evaluations[unit.variant.id].append(replace(unit, id=f"{unit.id}.{task.name}"))
    jobs = [_job(unit, (), "none") for unit in plan.units if unit.kind is UnitKind.QUANTIZE]
    variants = {unit.variant.id: unit for unit in plan.units if unit.kind is UnitKind.EVALUATE and unit.variant}
    for variant, unit in variants.items():
        jobs += [_job(one, unit.depends_on, "afterok") for one in evaluations[variant]]
    merge = plan.units[-1]
    return [*jobs, _job(merge, tuple(job.name for job in jobs), "afterany")]


def _job(unit: PlannedUnit, needs: tuple[str, ...], dependency: str) -> PlannedArray:
    return PlannedArray(
        name=unit.id,
        kind=unit.kind,
        shape=unit.shape,
        environment=unit.environment,
        units=(unit,),
        throttle=None,
        time_limit_minutes=2880,
        depends_on=needs,
        dependency=dependency if needs else "none",
    )


def gpu_hours(arrays: Sequence[PlannedArray], seconds: Mapping[str, float]) -> float:
    """Return the GPU-hours of all units."""
    return sum(array.shape.gpus * seconds[unit.id] for array in arrays for unit in array.units) / 3600


def _print_ratios(what: str, times: Sequence[float]) -> None:
    print(f"  {what}: median {statistics.median(times):.2f} times the plan's ({min(times):.2f} to {max(times):.2f})")


def main() -> None:
    """Run all cases, or those of the seeds on the command line."""
    seeds = [int(word) for word in sys.argv[1:]] or range(CASES)
    with tempfile.TemporaryDirectory() as name:
        found = [run_case(seed, Path(name) / str(seed)) for seed in seeds]
    results = [result for result in found if result is not None]
    if sys.argv[1:]:
        for result in results:
            print(result, f"{result.ratio:.3f}")
        return
    worst = max(results, key=lambda one: one.ratio)
    ratios = sorted(one.ratio for one in results)
    deciles = " ".join(f"{ratio:.3f}" for ratio in statistics.quantiles(ratios, n=10))
    print(
        f"{len(results)} of {len(found)} cases (in the others no unit fits); {sum(one.units for one in results)} units"
    )
    print(f"makespan / lower bound: deciles {deciles}; worst {worst.ratio:.3f} with seed {worst.seed}")
    print(f"arrays per plan: median {statistics.median(one.arrays for one in results):g}")
    for objective, is_auto in itertools.product(("makespan", "gpu-hours"), (True, False)):
        alike = [one for one in results if one.objective == objective and (one.shards == "auto") is is_auto]
        print(f"{objective}, shards {'auto' if is_auto else 'a number'}: one job per model and task")
        _print_ratios("makespan", [one.per_task_wall_s / one.wall_s for one in alike])
        _print_ratios("GPU-hours", [one.per_task_gpu_hours / one.gpu_hours for one in alike])
    print_thresholds(
        (
            Threshold(
                name="makespan / lower bound, median", measured=statistics.median(ratios), limit=1.10, is_maximum=True
            ),
            Threshold(name="makespan / lower bound, worst", measured=worst.ratio, limit=1.25, is_maximum=True),
        )
    )


if __name__ == "__main__":
    main()
