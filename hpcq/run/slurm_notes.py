"""Notes of a plan about what Slurm is asked for: values from the submitting shell, host memory of quantizations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from hpcq.core.work_records import UnitKind
from hpcq.manifest.profiles import Profile
from hpcq.plan.units import PlannedUnit, Shape
from hpcq.run.load import LoadedRun
from hpcq.slurm.environment import sbatch_options


def slurm_notes(loaded: LoadedRun) -> list[str]:
    """Return the notes; none with the local scheduler."""
    if not loaded.on_slurm:
        return []
    return [*_shell_notes(loaded.profile), *memory_notes(loaded.plan.units, loaded.profile)]


def _shell_notes(profile: Profile) -> list[str]:
    """Return notes on the variables of the submitting shell: the values that are used, and the options that are not."""
    used = profile.from_shell
    notes = [str(setting) for setting in used]
    ignored = sorted(sbatch_options() - {setting.variable for setting in used})
    if ignored:
        notes.append(f"{', '.join(ignored)}: not passed on to Slurm. Set the options in the cluster profile instead.")
    return notes


def memory_notes(units: Iterable[PlannedUnit], profile: Profile) -> list[str]:
    """Return how quantizations that need more than the share of one GPU get their host memory, by class."""
    shapes: dict[str, list[Shape]] = defaultdict(list)
    for unit in units:
        if unit.kind is UnitKind.QUANTIZE:
            shapes[unit.shape.gpu_class].append(unit.shape)
    return [note for name, found in shapes.items() for note in _class_notes(name, found, profile)]


def _class_notes(name: str, shapes: Iterable[Shape], profile: Profile) -> list[str]:
    option, notes = profile.options_of(name).memory_option, list[str]()
    most: dict[int, float] = defaultdict(float)
    for shape in shapes:
        most[shape.gpus_per_node] = max(shape.host_memory_gib, most[shape.gpus_per_node])
    for gpus, memory_gib in sorted(most.items()):
        if memory_gib:
            notes.append(
                f"Quantizing on {name} requests up to {memory_gib:g} GiB of host memory with {gpus} GPU (--{option})."
            )
        elif gpus > 1:
            notes.append(
                f"Quantizing on {name} takes {gpus} GPUs for their share of host memory: with memory_option ="
                f" '{option}' a unit gets memory by its number of GPUs."
            )
    return notes
