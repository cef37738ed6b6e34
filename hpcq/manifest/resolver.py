"""From a manifest to what it comes to: names become what they name, files become digests. Writes the cache alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from hpcq.catalog import packages
from hpcq.catalog.schemes import find_scheme, rehearsed
from hpcq.core.digests import digest_of_items, digest_of_model, digest_of_text
from hpcq.core.errors import ManifestError
from hpcq.core.paths import RunLayout
from hpcq.core.work import Calibration, Kind, Model, Scheme, Task
from hpcq.manifest.checks import find_problems
from hpcq.manifest.fs_access import is_there
from hpcq.manifest.lookups import (
    calibration_file,
    defined_schemes,
    folder_of,
    items_of,
    items_used,
    name_of,
    profile_of,
    scheme_names_of,
    shape_of,
    tasks_of,
    why_unsized,
)
from hpcq.manifest.profiles import Profile
from hpcq.manifest.resolved import EvaluateSettings, QuantizeSettings, ReportSettings, Resolved
from hpcq.manifest.schema import EvaluateSection, Manifest, RehearsalSection, TaskOptions
from hpcq.manifest.source import KeyPath

_BACKEND_ENVIRONMENTS = {"accelerate": "transformers", "vllm": "vllm", "synthetic": "core"}
_WITHOUT_GPUS = {"vllm": "vllm-cpu"}
"""Where the back end's build for CPUs lives: used where no class of nodes that evaluates has a GPU."""


def resolve(manifest: Manifest) -> Resolved:
    """What `manifest` comes to.

    What is not on this file system yet has no digest, and a sentence in `Resolved.missing`.

    Raises:
        ManifestError: a name that stands for nothing, or a file whose digest is not the one that a lock recorded.
    """
    source = manifest.source
    problems = find_problems(manifest)
    if problems:
        raise ManifestError([source.problem(*problem) for problem in problems])
    return _Resolving(manifest).resolved()


class _Resolving:
    """One pass over a sound manifest, which gathers what is missing and what has changed."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.missing: list[str] = []
        self.problems: list[str] = []

    def resolved(self) -> Resolved:
        manifest = self.manifest
        pairs = tuple(self._pairs())
        tasks = tuple(self._tasks())
        calibration = self._calibration() if any(scheme.needs_calibration for _, scheme in pairs) else None
        if self.problems:
            raise ManifestError(self.problems)
        locked = manifest.locked.versions if manifest.locked else {}
        return Resolved(
            name=manifest.run.name,
            layout=layout_of(manifest),
            profile=profile_of(manifest),
            pairs=pairs,
            shapes={name_of(entry): shape_of(entry, manifest) for entry in manifest.models},
            unsized={name_of(entry): why for entry in manifest.models if (why := why_unsized(entry, manifest))},
            calibration=calibration,
            tasks=tasks,
            evaluate=_evaluate_settings(manifest, manifest.evaluate.backend),
            fallback=_fallback(manifest),
            quantize=_quantize_settings(manifest),
            report=ReportSettings(compare=manifest.report.compare),
            notes=tuple(_notes(manifest, tasks)),
            missing=tuple(self.missing),
            locked_versions={name: tuple(sorted(versions.items())) for name, versions in locked.items()},
            manifest=manifest,
        )

    def _pairs(self) -> Iterator[tuple[Model, Scheme]]:
        """Every model with each of its schemes, unquantized first, for they are what the others are compared with."""
        defined = defined_schemes(self.manifest)
        for index in range(len(self.manifest.models)):
            model = self._model(index)
            names = [name for _, name in scheme_names_of(index, self.manifest)]
            schemes = [scheme for name in names if (scheme := find_scheme(name, defined))]
            if self.manifest.is_rehearsal:
                is_sized = _stands_for(self.manifest.evaluate) is not None
                schemes = [rehearsed(scheme, is_sized=is_sized) for scheme in schemes]
            yield from ((model, scheme) for scheme in sorted(schemes, key=lambda scheme: scheme.is_quantized))

    def _model(self, index: int) -> Model:
        entry = self.manifest.models[index]
        name, folder = name_of(entry), folder_of(entry, self.manifest)
        cure = f"its folder {folder} does not exist." if entry.path else _stage_cure(self.manifest)
        return Model(
            id=name,
            revision=entry.revision,
            digest=self._digest(
                folder, digest_of_model, entry.digest, ("models", index, "digest"), f"Model {name} is missing: {cure}"
            ),
            trust_remote_code=entry.trust_remote_code,
            path=str(folder) if folder else None,
            notes=packages.model_notes(name),
        )

    def _tasks(self) -> Iterator[Task]:
        settings = self.manifest.tasks
        for _, name, suite_shots in tasks_of(self.manifest):
            options = settings.options.get(name, TaskOptions())
            folder = items_of(name, self.manifest)
            missing = f"The items of {name} are missing: {_stage_cure(self.manifest)}"
            place = ("tasks", "options", name, "digest")
            yield Task(
                name=name,
                num_fewshot=suite_shots if options.num_fewshot is None else options.num_fewshot,
                limit=options.limit or settings.limit,
                max_gen_toks=options.max_gen_toks,
                fewshot_seed=self.manifest.evaluate.seed,
                data_digest=self._digest(folder, digest_of_items, options.digest, place, missing),
                data_path=str(folder) if folder else None,
            )

    def _calibration(self) -> Calibration:
        settings = self.manifest.calibration
        path = calibration_file(self.manifest)
        missing = f"The calibration text {settings.dataset} is missing: {_stage_cure(self.manifest)}"
        return Calibration(
            digest=self._digest(path, digest_of_text, settings.digest, ("calibration", "digest"), missing),
            samples=settings.samples,
            sequence_length=settings.sequence_length,
            seed=settings.seed,
            dataset=settings.dataset,
            path=str(path) if path else None,
        )

    def _digest(
        self, path: Path | None, measure: Callable[[Path], str], locked: str | None, place: KeyPath, missing: str
    ) -> str | None:
        """The digest of what lies at `path`, which must be the locked one; of what is not there, the locked one.

        A rehearsal reads nothing, so nothing is missing.
        """
        if path is None or self.manifest.is_rehearsal:
            return locked
        if not is_there(path):
            self.missing.append(missing)
            return locked
        try:
            digest = measure(path)
        except OSError as error:
            self._refuse(place[:-1], f"{error.filename or path} cannot be read ({error.strerror}).")
            return locked
        if locked not in (None, digest):
            cure = "Put the locked one back, or remove this line."
            self._refuse(place, f"{path} has changed: its SHA-256 is now {digest}. {cure}")
        return digest

    def _refuse(self, place: KeyPath, sentence: str) -> None:
        self.problems.append(self.manifest.source.problem(place, sentence))


def _stage_cure(manifest: Manifest) -> str:
    return f"type `hpcq stage {manifest.source.path or 'MANIFEST'}`."


def layout_of(manifest: Manifest) -> RunLayout:
    """Where the manifest's run lies."""
    folders = {key: Path(text).expanduser().absolute() for key, text in manifest.paths.model_dump().items()}
    return RunLayout(name=manifest.run.name, **folders)


def _fallback(manifest: Manifest) -> EvaluateSettings | None:
    """transformers computes every architecture and number format of the catalog, if slowly."""
    usual = _evaluate_settings(manifest, manifest.evaluate.backend)
    if usual.placed_as != "vllm" or not manifest.evaluate.fallback:
        return None
    if usual.stands_for:
        return replace(usual, stands_for="accelerate", engine=())
    return _evaluate_settings(manifest, "accelerate")


def _evaluate_settings(manifest: Manifest, backend: str) -> EvaluateSettings:
    """As the manifest says; its environment is that of the back end it names, and of no other."""
    section = manifest.evaluate
    rehearsal = section.rehearsal or RehearsalSection()
    named = section.environment if backend == section.backend else None
    return EvaluateSettings(
        backend=backend,
        environment=named or _environment_of(backend, profile_of(manifest)),
        dtype=section.dtype,
        batch_size=section.batch_size,
        shards=section.shards,
        flush_interval_s=section.flush_interval_s,
        device=section.device,
        seed=section.seed,
        prefix_sharing=section.prefix_sharing,
        max_length=section.max_length,
        engine=_engine(section) if "vllm" in (backend, rehearsal.stands_for) else (),
        pace=tuple(rehearsal.model_dump(exclude={"stands_for"}).items()) if backend == "synthetic" else (),
        stands_for=rehearsal.stands_for,
        offload=section.offload,
    )


def _engine(section: EvaluateSection) -> tuple[tuple[str, int | float | bool], ...]:
    return tuple(section.engine.model_dump(exclude_none=True).items()) if section.engine else ()


def _stands_for(section: EvaluateSection) -> str | None:
    return section.rehearsal.stands_for if section.rehearsal else None


def _environment_of(backend: str, profile: Profile) -> str:
    offered = [one for one in profile.gpu_classes.values() if Kind.EVALUATE.value in one.roles]
    usual = _BACKEND_ENVIRONMENTS[backend]
    return usual if any(one.gpus_per_node for one in offered) else _WITHOUT_GPUS.get(backend, usual)


def _quantize_settings(manifest: Manifest) -> QuantizeSettings:
    default = "core" if manifest.is_rehearsal else "transformers"
    return QuantizeSettings(environment=manifest.quantize.environment or default, device=manifest.quantize.device)


def _notes(manifest: Manifest, tasks: tuple[Task, ...]) -> Iterator[str]:
    """Caveats of the models, then of the tasks' items, then of their number."""
    for entry in manifest.models:
        yield from (f"{name_of(entry)}: {note}" for note in packages.model_notes(name_of(entry)))
    if manifest.tasks.data == "packages":
        for task in tasks:
            yield from (f"{task.name}: {note}" for note in packages.items_notes(task.name))
    used = {task.name: items_used(task.name, task.limit, manifest) for task in tasks}
    few = [f"{name} {counts[0]} of {counts[1]}" for name, counts in used.items() if counts]
    few += [f"{task.name} {task.limit} of each part" for task in tasks if task.limit and used[task.name] is None]
    if few:
        yield f"Only some of the items were used ({', '.join(few)}): mind the standard errors."
