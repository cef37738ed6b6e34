"""Difference between a plan and the earlier one in the run's folder: what is added, removed, or computed again.

A run can grow: variants and tasks are added or removed, and what exists stays. It never mixes results of different
settings: a plan that would compute existing results again is refused. Only models whose files were repaired after their
units had failed are replaced.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from hpcq.core.completion_marker import extend_completion_marker
from hpcq.core.errors import UserInputError
from hpcq.core.frozen import dataclass
from hpcq.core.paths import RunLayout, variant_folders
from hpcq.core.work_records import PANEL_TASK, EvaluateWork, MergeWork, UnitKind
from hpcq.manifest import lock_text
from hpcq.monitor.completed import completed_units
from hpcq.plan.build_units import merged_evaluations
from hpcq.plan.tool_versions import versions_by_environment
from hpcq.run.changed_settings import changed_settings
from hpcq.run.load import LoadedRun
from hpcq.run.merge_record import read_merge_unit
from hpcq.run.record import read_plan, read_units

MAX_LISTED = 3
"""Settings, variants or tasks that a message names; the others are counted."""

_OTHER_PANEL = f"another {PANEL_TASK}"
"""A fidelity panel with other text. It has no score, all variants read the new one, and it is cheap: no repetition.

A calibrated scheme that is added to a run changes the text, because the panel leaves out what the calibration may read.
"""

_DIGEST_OF_MODEL = re.compile(r"models\.\d+\.(digest|checkpoint_digests\..+)")
"""Key of the digest of a local model, or of a local checkpoint that others quantized."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a plan evaluates of one variant.

    Attributes:
        variant: Id of the variant.
        model: Id of its model.
        scheme: Name of its scheme.
        address: Content address of all responses.
        tasks: Content address of the responses by task.
    """

    variant: str
    model: str
    scheme: str
    address: str
    tasks: Mapping[str, str]

    @property
    def name(self) -> str:
        """Name in messages: the last part of the model's id, and the scheme."""
        return f"{self.model.rstrip('/').rpartition('/')[2]} {self.scheme}"


@dataclass(frozen=True, kw_only=True)
class PlanChange:
    """What a plan changes in a run.

    Attributes:
        added: Variants that the run did not have.
        removed: Variants that it no longer has.
        added_tasks: Tasks that are added to variants of both plans.
        removed_tasks: Tasks that are removed from them.
        repeated: What would be computed again: the evaluations of both plans that have other settings now.
        repeated_tasks: Their tasks.
        reduced: Evaluations that have fewer tasks, with the earlier address: nothing has to be computed.
    """

    added: tuple[Evaluation, ...] = ()
    removed: tuple[Evaluation, ...] = ()
    added_tasks: tuple[str, ...] = ()
    removed_tasks: tuple[str, ...] = ()
    repeated: tuple[Evaluation, ...] = ()
    repeated_tasks: tuple[str, ...] = ()
    reduced: tuple[tuple[str, Evaluation], ...] = ()

    @property
    def growth(self) -> str:
        """What is added and removed, as the predicate of a sentence."""
        parts = []
        if self.added or self.added_tasks:
            parts.append(f"adds {_listed([*(one.name for one in self.added), *self.added_tasks])}")
        if self.removed or self.removed_tasks:
            parts.append(f"removes {_listed([*(one.name for one in self.removed), *self.removed_tasks])}")
        return " and ".join(parts)


def plan_change(before: Sequence[Evaluation], after: Sequence[Evaluation]) -> PlanChange:
    """Compare the evaluations of two plans of a run."""
    old, new = ({one.variant: one for one in evaluations} for evaluations in (before, after))
    added = [one for name, one in new.items() if name not in old]
    removed = [one for name, one in old.items() if name not in new]
    # The same scheme of the same model with another address: other files, versions or settings.
    replaced = {(one.model, one.scheme) for one in added} & {(one.model, one.scheme) for one in removed}
    repeated = {one.variant: (one, [*one.tasks]) for one in added if (one.model, one.scheme) in replaced}
    more: dict[str, None] = {}
    fewer: dict[str, None] = {}
    reduced = []
    for name, one in new.items():
        if name not in old or old[name].address == one.address:
            continue
        earlier = old[name].tasks
        more |= dict.fromkeys(task for task in one.tasks if task not in earlier)
        fewer |= dict.fromkeys(task for task in earlier if task not in one.tasks)
        changed = [task for task, address in one.tasks.items() if earlier.get(task, address) != address]
        if any(task != PANEL_TASK for task in changed):
            repeated[name] = (one, changed)
        elif changed:
            more[_OTHER_PANEL] = None
        elif one.tasks.keys() <= earlier.keys():
            reduced.append((old[name].address, one))
    return PlanChange(
        added=tuple(one for one in added if (one.model, one.scheme) not in replaced),
        removed=tuple(one for one in removed if (one.model, one.scheme) not in replaced),
        added_tasks=tuple(more),
        removed_tasks=tuple(fewer),
        repeated=tuple(one for one, _ in repeated.values()),
        repeated_tasks=tuple(dict.fromkeys(task for _, tasks in repeated.values() for task in tasks)),
        reduced=tuple(reduced),
    )


def check_same_plan(loaded: LoadedRun) -> None:
    """Check that an existing folder of the run has the same plan address as `loaded`.

    Raises:
        UserInputError: The folder belongs to a run with other settings; the message lists the keys that differ.
    """
    if _has_same_plan(loaded):
        return
    layout, change, settings = loaded.layout, _find_change(loaded), _settings(loaded)
    if not change.repeated:
        raise UserInputError(
            f"{layout.folder}: the manifest has changed since this run was submitted: it {change.growth}. Submit it, or"
            f" give the name of the run, '{layout.name}', instead of the manifest."
        )
    if _are_repaired_models(loaded, settings):
        raise UserInputError(
            f"{_other_settings(layout, settings)}. Submit the manifest again: the units of these models had failed, so"
            " `submit` replaces the models."
        )
    raise UserInputError(_refusal(layout, settings, change))


def check_plan_change(loaded: LoadedRun) -> str | None:
    """Check that `loaded` may be submitted to an existing folder of the run.

    It may add and remove variants and tasks. Files of a model may have changed since an earlier submission if none of
    its evaluations has completed: the user has repaired it. Its units have new ids, and no response of the old files is
    read.

    Returns:
        A note about what changes; None: the plan is the same, or the folder does not exist.

    Raises:
        UserInputError: Existing results would be computed again.
    """
    if _has_same_plan(loaded):
        return None
    layout, change = loaded.layout, _find_change(loaded)
    if not change.repeated:
        return _growth_note(layout, change)
    settings = _settings(loaded)
    if not _are_repaired_models(loaded, settings):
        raise UserInputError(_refusal(layout, settings, change))
    models = loaded.resolved.context.models
    names = dict.fromkeys(models[int(key.split(".")[1])].id for key in settings)
    return (
        f"{', '.join(names)}: the files have changed since run '{layout.name}' was submitted, and no evaluation"
        " of the earlier files is complete. The new files replace the earlier model in this run."
    )


def keep_reduced_evaluations(loaded: LoadedRun) -> None:
    """Mark evaluations as complete that have fewer tasks than before, if they were complete with all of them.

    The caller has the run's lock, and the plan in the run's folder is the earlier one.
    """
    layout, plan = loaded.layout, read_plan(loaded.layout)
    units = [unit for unit in read_units(plan or {"units": ()}) or () if unit.kind is UnitKind.EVALUATE]
    reduced = _find_change(loaded).reduced if units else ()
    done = completed_units(layout, units) if reduced else frozenset()
    for earlier, evaluation in reduced:
        if all(unit.id in done for unit in units if unit.variant_id == evaluation.variant):
            for folder in variant_folders(layout.segments, evaluation.variant):
                extend_completion_marker(folder, earlier=earlier, address=evaluation.address)


def _growth_note(layout: RunLayout, change: PlanChange) -> str:
    if not change.growth and change.reduced:
        return f"run '{layout.name}': this manifest names the same tasks in another order. Existing results stay."
    if not change.growth:
        return f"run '{layout.name}': an earlier submission of this manifest was interrupted, and is completed."
    note = f"run '{layout.name}': this manifest {change.growth}. Existing results stay."
    if change.removed or change.removed_tasks:
        note += (
            " Reports and merges no longer include what is removed. Its responses and checkpoints stay, and are used"
            " if it is added again."
        )
    return f"{note} Earlier lock files and plans: {layout.history}."


def _refusal(layout: RunLayout, settings: Mapping[str, tuple[str, str]], change: PlanChange) -> str:
    growth = f" It also {change.growth}; without the other change, the run accepts this." if change.growth else ""
    return (
        f"{_other_settings(layout, settings)}, so {_listed([one.name for one in change.repeated])} would be evaluated"
        f" again on {_listed(change.repeated_tasks)}.{growth} Submit another run with these options:"
        f" `hpcq submit MANIFEST -O run.name={layout.name}-2`."
    )


def _other_settings(layout: RunLayout, settings: Mapping[str, tuple[str, str]]) -> str:
    texts = [f"{key} was {before} and is {after}" for key, (before, after) in settings.items()]
    return f"{layout.folder}: this run has other settings ({'; '.join(texts[:MAX_LISTED]) or 'other versions'})"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_LISTED
    if more > 0:
        return f"{', '.join(names[:MAX_LISTED])} and {more} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1] if names else "")))


def _has_same_plan(loaded: LoadedRun) -> bool:
    plan = read_plan(loaded.layout)
    return plan is None or plan.get("address") == loaded.plan.address


def _settings(loaded: LoadedRun) -> dict[str, tuple[str, str]]:
    return changed_settings(loaded.layout, lock_text(loaded.resolved, versions_by_environment(loaded.plan)))


def _find_change(loaded: LoadedRun) -> PlanChange:
    refused = {refusal.variant for refusal in loaded.plan.refused}
    before = [one for one in earlier_evaluations(loaded.layout) if one.variant not in refused]
    return plan_change(before, [_evaluation(work) for work in merged_evaluations(loaded.plan.units)])


def earlier_evaluations(layout: RunLayout) -> list[Evaluation]:
    """Return what the plan in the run's folder evaluates.

    Runs of earlier versions have no record of their merge. For them, the tasks of a variant have the address of all its
    responses: adding a task counts as another setting.
    """
    merge = read_merge_unit(layout)
    if merge is not None and isinstance(merge.work, MergeWork):
        return [_evaluation(work) for work in merge.work.evaluations]
    found: dict[str, Evaluation] = {}
    for row in (read_plan(layout) or {"units": ()})["units"]:
        if row["kind"] == UnitKind.EVALUATE:
            found[row["variant"]] = Evaluation(
                variant=row["variant"],
                model=row["model"],
                scheme=row["scheme"],
                address=row["address"],
                tasks=dict.fromkeys(row["tasks"], row["address"]),
            )
    return [*found.values()]


def _evaluation(work: EvaluateWork) -> Evaluation:
    return Evaluation(
        variant=work.variant.id,
        model=work.variant.model.id,
        scheme=work.variant.scheme.name,
        address=work.address,
        tasks={task.name: work.task_address(task) for task in work.tasks},
    )


def _are_repaired_models(loaded: LoadedRun, settings: Iterable[str]) -> bool:
    """Return whether only files of models have changed, and no variant that is replaced was evaluated completely."""
    keys, plan = tuple(settings), read_plan(loaded.layout)
    if plan is None or not keys or not all(_DIGEST_OF_MODEL.fullmatch(key) for key in keys):
        return False
    units = read_units(plan) or ()
    kept = {unit.variant_id for unit in loaded.plan.units}
    done = completed_units(loaded.layout, units)
    replaced: dict[str | None, set[str]] = defaultdict(set)
    for unit in units:
        if unit.kind is UnitKind.EVALUATE and unit.variant_id not in kept:
            replaced[unit.variant_id].add(unit.id)
    return bool(replaced) and not any(shards <= done for shards in replaced.values())
