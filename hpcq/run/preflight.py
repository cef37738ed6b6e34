"""Whether a plan can be handed over here: refusals, models and environments that are not there, Slurm itself.

Knows an opened run and this machine; writes nothing.
"""

from __future__ import annotations

from hpcq.core import environments
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.work import EvaluateWork
from hpcq.plan.units import PlannedUnit
from hpcq.run.run import Opened
from hpcq.slurm.squeue import check_cluster

USUAL_ENVIRONMENTS = ("core", "transformers")
"""Those that `make environments` makes."""


def check_runnable(opened: Opened) -> None:
    """See, before anything is written, that all of the plan can run and is there.

    Raises:
        UserInputError: something in the plan cannot run.
        SetupError: a model, an environment or Slurm is missing.
    """
    # A benchmark that cannot run is left out, and the plan and the report say so; a variant is not.
    is_left_out = any(isinstance(unit.work, EvaluateWork) and unit.work.tasks for unit in opened.plan.units)
    refused = [
        f"{refusal.reason} Try this: {refusal.cure}."
        for refusal in opened.plan.refused
        if refusal.variant is not None or not is_left_out
    ]
    faults = (_engine_fault(unit, on_slurm=opened.on_slurm) for unit in opened.plan.units)
    refused += dict.fromkeys(filter(None, faults))
    if refused:
        raise UserInputError("\n".join(refused))
    absent = list(opened.resolved.missing)
    for name in sorted({unit.environment for unit in opened.plan.units}):
        settings = opened.profile.environments.get(name)
        if not (settings and settings.python) and not environments.exists(name):
            make = "make environments" if name in USUAL_ENVIRONMENTS else f"python3 -m hpcq.core.environments {name}"
            absent.append(f"The environment '{name}' has not been made: type `{make}`.")
    if opened.on_slurm and not absent:
        check_cluster()
    if absent:
        raise SetupError("\n".join(absent))


def _engine_fault(unit: PlannedUnit, *, on_slurm: bool) -> str | None:
    """Why vLLM's engine cannot do a unit where the plan puts it; None where it can, and for other work."""
    work, shape = unit.work, unit.shape
    if not isinstance(work, EvaluateWork) or work.backend != "vllm":
        return None
    if shape.nodes > 1 and not on_slurm:
        return (
            f"{work.variant.id}: takes {shape.nodes} nodes of class '{shape.gpu_class}', and a profile with scheduler ="
            " 'local' has this machine alone. Try one with scheduler = 'slurm', or a scheme with fewer bits."
        )
    engine = dict(work.engine)
    wanted = int(engine.get("tensor_parallel_size", 1)) * int(engine.get("pipeline_parallel_size", 1))
    if shape.gpus and wanted > shape.gpus:
        return (
            f"{work.variant.id}: evaluate.engine's tensor and pipeline parallel sizes ask for {wanted} GPUs, and the"
            f" plan gives it {shape.gpus} of class '{shape.gpu_class}'. Leave them out."
        )
    return None
