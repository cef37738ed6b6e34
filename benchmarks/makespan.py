"""How close to a lower bound the planner's arrays end, and how far ahead of one job a model and task: simulated.

Random clusters and manifests go through the real planner, and take the seconds that it reckons; no cluster is needed.
`python benchmarks/makespan.py SEED …`
shows single cases.
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

from parts.bars import Bar, tell

from benchmarks.parts.lower_bound import lower_bound
from hpcq.core.work import Kind
from hpcq.manifest import Resolved, load, resolve
from hpcq.plan.arrays import make_arrays
from hpcq.plan.plan import make_plan
from hpcq.plan.schedule.simulator import timeline
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
class Outcome:
    """A case, with seconds: of the plan as it is, of the bound, and of one job a model and task."""

    seed: int
    objective: str
    shards: int | str
    units: int
    arrays: int
    wall: float
    bound: float
    apart_wall: float
    gpu_hours: float
    apart_gpu_hours: float

    @property
    def ratio(self) -> float:
        """Of the makespan to the bound."""
        return self.wall / self.bound


def write_case(seed: int, folder: Path) -> Path:
    """A manifest and the profile of a cluster for it; every number follows from the seed."""
    chance = random.Random(seed)  # noqa: S311 - cases, not secrets
    folder.mkdir()
    lines = ['name = "random"', 'scheduler = "slurm"', "[slurm]", "time_limit_minutes = 2880"]
    gpus = chance.sample(GPUS, chance.randint(1, 4))
    calibrates_apart = len(gpus) > 1 and chance.random() < 1 / 3
    for number, gpu in enumerate(gpus):
        gpus_per_node = chance.choice((4, 8))
        nodes = chance.randint(1, 8)
        roles = ["quantize", "evaluate", "merge"]
        if calibrates_apart:
            roles = ["quantize", "merge"] if number == 0 else ["evaluate"]
        lines += [f'[gpu_classes."{gpu.lower()}"]', f'gpu = "{gpu}"', f"nodes = {nodes}", "cpus_per_node = 64"]
        lines += [f"gpus_per_node = {gpus_per_node}", "memory_gib = 2000", f"roles = {json.dumps(roles)}"]
        if chance.random() < 1 / 4:
            lines.append(f"throttle = {chance.randint(2, nodes * gpus_per_node)}")
    (folder / "cluster.toml").write_text("\n".join(lines) + "\n")
    models = chance.sample(MODELS, chance.randint(1, len(MODELS)))
    schemes = ["bf16", *chance.sample(SCHEMES[1:], chance.randint(0, len(SCHEMES) - 1))]
    suites = chance.choice((["openllm-v1"], ["openllm-v2"], ["openllm-v1", "openllm-v2"]))
    path = folder / "manifest.toml"
    path.write_text(
        '[run]\nname = "random"\n[cluster]\nprofile = "cluster.toml"\n'
        + "".join(f'[[models]]\nid = "{model}"\n' for model in models)
        + f"[schemes]\nuse = {json.dumps(schemes)}\n[tasks]\nsuites = {json.dumps(suites)}\n"
        + f'[plan]\nobjective = "{chance.choice(("gpu-hours", "finish"))}"\n'
        + f'[evaluate]\nbackend = "vllm"\nshards = {chance.choice((AUTO, AUTO, AUTO, 1, 2, 4))}\n'
    )
    return path


def outcome_of(seed: int, folder: Path) -> Outcome | None:
    """None: nothing of the manifest fits on the cluster."""
    resolved = resolve(load(write_case(seed, folder)))
    plan = make_plan(resolved)
    units = plan.units
    if not units:
        return None
    seconds = seconds_of(units)
    arrays = make_arrays(units, resolved.profile)
    apart = one_job_a_task(resolved, plan)
    apart_seconds = seconds_of([unit for job in apart for unit in job.units])
    return Outcome(
        seed=seed,
        objective=resolved.manifest.plan.objective,
        shards=resolved.evaluate.shards,
        units=len(units),
        arrays=len(arrays),
        wall=timeline(arrays, resolved.profile, seconds).wall_seconds,
        bound=lower_bound(arrays, resolved.profile, seconds),
        apart_wall=timeline(apart, resolved.profile, apart_seconds).wall_seconds,
        gpu_hours=gpu_hours(arrays, seconds),
        apart_gpu_hours=gpu_hours(apart, apart_seconds),
    )


def seconds_of(units: Sequence[PlannedUnit]) -> dict[str, float]:
    """By unit; the catalog knows all models here, so all are known."""
    return {unit.id: unit.seconds for unit in units if unit.seconds is not None}


def one_job_a_task(resolved: Resolved, plan: Plan) -> list[PlannedArray]:
    """The same work as a script of sbatch calls does it: in the manifest's order, a job a model and task, no shards.

    The planner places each of them, for the fewest GPU-hours or the soonest end, as it does the plan's units.
    """
    whole = replace(resolved, evaluate=replace(resolved.evaluate, shards=1))
    evaluations: dict[str, list[PlannedUnit]] = defaultdict(list)
    for task in resolved.tasks:
        for unit in make_plan(replace(whole, tasks=(task,))).units:
            if unit.kind is Kind.EVALUATE and unit.variant:
                evaluations[unit.variant.id].append(replace(unit, id=f"{unit.id}.{task.name}"))
    jobs = [_job(unit, (), "none") for unit in plan.units if unit.kind is Kind.QUANTIZE]
    variants = {unit.variant.id: unit for unit in plan.units if unit.kind is Kind.EVALUATE and unit.variant}
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
    """GPUs times the hours that they are held."""
    return sum(array.shape.gpus * seconds[unit.id] for array in arrays for unit in array.units) / 3600


def _tell_times(what: str, times: Sequence[float]) -> None:
    print(f"  {statistics.median(times):.2f} times the {what} in the median ({min(times):.2f} to {max(times):.2f})")


def main() -> None:
    """All cases, or those of the seeds that were typed."""
    seeds = [int(word) for word in sys.argv[1:]] or range(CASES)
    with tempfile.TemporaryDirectory() as name:
        found = [outcome_of(seed, Path(name) / str(seed)) for seed in seeds]
    outcomes = [outcome for outcome in found if outcome is not None]
    if sys.argv[1:]:
        for outcome in outcomes:
            print(outcome, f"{outcome.ratio:.3f}")
        return
    worst = max(outcomes, key=lambda one: one.ratio)
    ratios = sorted(one.ratio for one in outcomes)
    deciles = " ".join(f"{ratio:.3f}" for ratio in statistics.quantiles(ratios, n=10))
    print(f"{len(outcomes)} cases of {len(found)} (elsewhere nothing fits); {sum(one.units for one in outcomes)} units")
    print(f"makespan / lower bound: deciles {deciles}; worst {worst.ratio:.3f} with seed {worst.seed}")
    print(f"arrays a plan: median {statistics.median(one.arrays for one in outcomes):g}")
    for objective, is_auto in itertools.product(("finish", "gpu-hours"), (True, False)):
        alike = [one for one in outcomes if one.objective == objective and (one.shards == "auto") is is_auto]
        print(f"{objective}, shards {'auto' if is_auto else 'stated'}: one job a model and task takes")
        _tell_times("makespan", [one.apart_wall / one.wall for one in alike])
        _tell_times("GPU-hours", [one.apart_gpu_hours / one.gpu_hours for one in alike])
    tell(
        (
            Bar(name="makespan / lower bound, median", measured=statistics.median(ratios), bar=1.10, is_most=True),
            Bar(name="makespan / lower bound, worst", measured=worst.ratio, bar=1.25, is_most=True),
        )
    )


if __name__ == "__main__":
    main()
