"""Resolve a manifest: replace names by records and files by digests. Writes only the digest cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hpcq.catalog import packages
from hpcq.catalog.generation_settings import GenerationSettings, read_generation_settings
from hpcq.catalog.schemes import synthetic_scheme
from hpcq.catalog.tools import backends, quantizers
from hpcq.core.calibration_source import DEFAULT_CONFIG, RANDOM_TOKENS, CalibrationSource
from hpcq.core.digests import digest_of_items, digest_of_model, digest_of_text
from hpcq.core.errors import ManifestError
from hpcq.core.item_selection import ItemSelection
from hpcq.core.paths import RunLayout
from hpcq.core.task_definitions import copies
from hpcq.core.work_records import (
    SHUFFLE_SEED,
    SYNTHETIC,
    Calibration,
    Checkpoint,
    FidelityPanel,
    Model,
    Scheme,
    Task,
    UnitKind,
    Variant,
)
from hpcq.manifest.calibration_checks import repetition_notes
from hpcq.manifest.checkpoint_damage import code_notes
from hpcq.manifest.checkpoints import NamedCheckpoint
from hpcq.manifest.context import Context, NamedModel, NamedTask, dataset_commit
from hpcq.manifest.fs_access import is_folder, path_exists
from hpcq.manifest.item_files import listed_items
from hpcq.manifest.lookups import item_counts, most_items, resolve_path
from hpcq.manifest.pins import Repository, dataset_repository, text_repository
from hpcq.manifest.profiles import Profile
from hpcq.manifest.prompt_checks import prompt_notes
from hpcq.manifest.prompt_records import max_gen_toks, task_prompt, task_sampling
from hpcq.manifest.resolved import EvaluateSettings, QuantizeSettings, ReportSettings, ResolvedManifest
from hpcq.manifest.schema import (
    EvaluateSection,
    FidelitySection,
    Manifest,
    SyntheticSection,
    TaskOptions,
    TextSection,
)
from hpcq.manifest.task_names import include_folders
from hpcq.manifest.value_origin import KeyPath


def resolve(context: Context) -> ResolvedManifest:
    """Resolve a manifest without problems, as `load` and `check_manifest` return it.

    Inputs that are not on this file system yet have no digest, and a sentence in `ResolvedManifest.missing`.

    Raises:
        ManifestError: a file cannot be read, or its digest differs from the recorded one.
    """
    return _Resolver(context).resolved()


class _Resolver:
    """One pass over a valid manifest; collects missing inputs and changed files."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.manifest = context.manifest
        self.missing: list[str] = []
        self.absent: list[str] = []
        self.problems: list[str] = []

    def resolved(self) -> ResolvedManifest:
        context, manifest = self.context, self.manifest
        models = [(named, self._model(index, named)) for index, named in enumerate(context.models)]
        pairs = tuple(pair for named, model in models for pair in self._pairs(named, model))
        tasks = tuple(self._tasks())
        foreign = dict(
            pair for index, (named, model) in enumerate(models) for pair in self._foreign(index, named, model)
        )
        self._refuse_equal_contents(models, foreign)
        calibration = self._calibration() if any(scheme.needs_calibration for _, scheme in pairs) else None
        panel = self._panel(manifest.fidelity, calibration) if manifest.fidelity else None
        if self.problems:
            raise ManifestError(self.problems)
        locked = manifest.locked.versions if manifest.locked else {}
        return ResolvedManifest(
            name=manifest.run.name,
            layout=run_layout(manifest),
            profile=context.cluster,
            pairs=pairs,
            foreign=tuple(foreign),
            stored_bytes={
                variant.checkpoint: one.stored_bytes
                for variant, one in foreign.items()
                if variant.checkpoint and one.stored_bytes
            },
            architectures={model: named.architectures for named, model in models if named.architectures is not None},
            generation=self._generation(),
            shapes={model: named.shape for named, model in models},
            shape_errors={model: named.shape_error for named, model in models if named.shape_error},
            calibration=calibration,
            tasks=tasks,
            panel=panel,
            evaluate=_evaluate_settings(context, manifest.evaluate.backend),
            fallback=_fallback(context),
            quantize=_quantize_settings(manifest, {scheme.tool for _, scheme in pairs if scheme.is_quantized}),
            report=ReportSettings(compare=manifest.report.compare, margin_points=manifest.report.margin_points),
            notes=tuple(_notes(context, [model for _, model in models], tasks)),
            missing=(*self.missing, *self.absent),
            absent=tuple(self.absent),
            locked_versions={name: tuple(sorted(versions.items())) for name, versions in locked.items()},
            context=context,
        )

    def _refuse_equal_contents(
        self, models: Sequence[tuple[NamedModel, Model]], foreign: Mapping[Variant, NamedCheckpoint]
    ) -> None:
        """Refuse models, and checkpoints of one model, with the same files: they would be the same variants."""
        first: dict[tuple[str, str], str] = {}
        listed: list[tuple[KeyPath, str, str | None, str]] = [
            (("models", index, "path" if named.entry.path else "id"), "", model.digest, named.entry.path or named.id)
            for index, (named, model) in enumerate(models)
        ]
        listed += [
            (one.key_path, variant.model.id, variant.checkpoint.digest, one.text)
            for variant, one in foreign.items()
            if variant.checkpoint
        ]
        for key_path, base, digest, text in listed:
            if digest and (base, digest) in first:
                same = first[base, digest]
                self._add_problem(key_path, f"'{text}' has the same files as '{same}': list only one of them.")
            elif digest:
                first[base, digest] = text

    def _generation(self) -> dict[str, GenerationSettings]:
        """Return the generation settings by folder. Rehearsals generate nothing."""
        if self.manifest.is_synthetic:
            return {}
        models = self.context.models
        folders = [model.folder for model in models] + [one.folder for model in models for one in model.checkpoints]
        return {str(folder): read_generation_settings(folder) for folder in folders if folder and is_folder(folder)}

    def _pairs(self, named: NamedModel, model: Model) -> Iterator[tuple[Model, Scheme]]:
        """Yield the model with each of its schemes; unquantized schemes first, because they are the baselines."""
        schemes = [use.scheme for use in named.schemes if use.scheme]
        if self.manifest.is_synthetic:
            is_sized = _emulated_backend(self.manifest.evaluate) is not None
            schemes = [synthetic_scheme(scheme, keep_method=is_sized) for scheme in schemes]
        yield from ((model, scheme) for scheme in sorted(schemes, key=lambda scheme: scheme.is_quantized))

    def _foreign(self, index: int, named: NamedModel, model: Model) -> Iterator[tuple[Variant, NamedCheckpoint]]:
        """Yield the checkpoints that others quantized. One that is not on this file system yet is only missing."""
        for one in named.checkpoints:
            if one.scheme is None or one.folder is None:
                if not self.manifest.is_synthetic:
                    self._add_missing(f"Checkpoint {one.text} is missing", None)
                continue
            recorded = named.entry.checkpoint_digests.get(one.text)
            key_path = ("models", index, "checkpoint_digests", one.text)
            missing = f"Checkpoint {one.text} is missing"
            digest = None if one.is_on_hub else self._digest(one.folder, digest_of_model, recorded, key_path, missing)
            checkpoint = Checkpoint(id=one.id, revision=one.revision, digest=digest, path=str(one.folder))
            yield Variant(model=model, scheme=one.scheme, checkpoint=checkpoint), one

    def _model(self, index: int, named: NamedModel) -> Model:
        entry, folder, name = named.entry, named.folder, named.id
        if entry.is_on_hub and not self.manifest.data.mirror:
            return Model(
                id=name,
                revision=named.commit or entry.revision,
                trust_remote_code=entry.trust_remote_code,
                path=str(folder) if folder else None,
            )
        is_staged = entry.source == "packages" and entry.path is None
        read = folder if named.schemes else None  # a model that is not evaluated may be missing
        digest = self._digest(
            read,
            digest_of_model,
            entry.digest,
            ("models", index, "digest"),
            f"Model {name} is missing",
            is_staged=is_staged,
        )
        return Model(
            id=name,
            digest=digest,
            trust_remote_code=entry.trust_remote_code,
            path=str(folder) if folder else None,
            notes=packages.model_notes(name if is_staged else None, digest),
        )

    def _tasks(self) -> Iterator[Task]:
        settings = self.manifest.tasks
        for named in self.context.tasks:
            name, folder = named.name, named.folder
            options = settings.options.get(name, TaskOptions())
            missing = f"The items of {name} are missing"
            key_path = ("tasks", "options", name, "digest")
            yield Task(
                name=name,
                num_fewshot=named.num_fewshot if options.num_fewshot is None else options.num_fewshot,
                **self._selection(name, options),
                max_gen_toks=max_gen_toks(self.manifest, name),
                fewshot_seed=self.manifest.evaluate.seed,
                data_digest=self._digest(
                    folder, items_digest(named), options.digest, key_path, missing, is_staged=True
                ),
                data_revisions=self._data_revisions(named) if folder is None else (),
                prompt=task_prompt(self.manifest, name),
                sampling=task_sampling(self.manifest, name),
                data_path=str(folder) if folder else None,
                cache=self.context.cache if settings.data == "hub" else None,
                shuffle_seed=SHUFFLE_SEED if named.info and named.info.is_shuffled else None,
                runs_code=bool(named.info and named.info.runs_code),
                **self._definitions(named),
            )

    def _selection(self, name: str, options: TaskOptions) -> dict[str, Any]:
        """Return the fields of a task that select its items; settings of the task replace those of all tasks."""
        settings = self.manifest.tasks
        if options.items is not None:
            return {"items": listed_items(options.items, name, self.manifest)}
        sample = options.sample or (None if options.limit else settings.sample)
        if sample:
            selection = ItemSelection(
                sample=sample.n,
                seed=sample.seed,
                is_stratified=sample.stratify,
                is_of_task=options.sample is not None,
            )
            return {"items": selection}
        return {"limit": options.limit or settings.limit}

    def _definitions(self, named: NamedTask) -> dict[str, Any]:
        """Return the fields of a task that the user has defined."""
        if named.definitions is None:
            return {}
        folders = include_folders(self.manifest)
        run_folder = run_layout(self.manifest).folder
        return {
            "definitions": named.definitions,
            "definition_folders": tuple(map(str, folders)),
            "definition_copies": tuple(map(str, copies(run_folder, named.definitions, len(folders)))),
        }

    def _data_revisions(self, named: NamedTask) -> tuple[tuple[str, str], ...]:
        """Return the commits of the task's data sets on the hub; empty unless all are known."""
        repo_ids = named.info.datasets if named.info else ()
        found = [(name, self._commit(dataset_repository(name, self.manifest))) for name in repo_ids]
        known = tuple((name, commit) for name, commit in found if commit is not None)
        return known if len(known) == len(found) else ()

    def _commit(self, repository: Repository) -> str | None:
        """Return the commit of a data set, or what identifies it in the mirror, which must have it; None: unknown."""
        commit, mirror = dataset_commit(repository, self.context), self.manifest.data.mirror
        if commit is None and mirror is not None and not self.manifest.is_synthetic:
            place = f"{resolve_path(mirror, self.manifest)}/datasets/{repository.id}"
            self._add_problem(("data", "mirror"), f"the data set {repository.id} is missing: copy it to {place}.")
        return commit

    def _calibration(self) -> Calibration:
        settings, path = self.manifest.calibration, self.context.calibration_path
        common: dict[str, Any] = {
            "samples": settings.samples,
            "sequence_length": settings.sequence_length,
            "seed": settings.seed,
            "chat_template": settings.chat_template,
            "add_bos": settings.add_bos,
            "dataset": settings.dataset,
        }
        if settings.dataset == RANDOM_TOKENS:
            return Calibration(digest=None, source=RANDOM_TOKENS, **common)
        source = self._text_source(settings)
        if source is not None:
            located = str(source.path(self.context.cache)) if source.is_pinned else None
            return Calibration(digest=None, source=str(source), path=located, **common)
        missing = f"The calibration text {settings.dataset} is missing"
        return Calibration(
            digest=self._digest(
                path, digest_of_text, settings.digest, ("calibration", "digest"), missing, is_staged=True
            ),
            column=settings.column,
            path=str(path) if path else None,
            **common,
        )

    def _panel(self, section: FidelitySection, calibration: Calibration | None) -> FidelityPanel:
        source, path = self._text_source(section), self.context.fidelity_path
        if source is not None:
            path = source.path(self.context.cache) if source.is_pinned else None
        missing = f"The text of the fidelity panel {section.dataset} is missing"
        return FidelityPanel(
            digest=None
            if source
            else self._digest(path, digest_of_text, section.digest, ("fidelity", "digest"), missing, is_staged=True),
            windows=section.windows,
            window_tokens=section.window,
            seed=section.seed,
            source=str(source) if source else None,
            column="text" if source else section.column,
            reserved=calibration,
            dataset=section.dataset,
            path=str(path) if path else None,
        )

    def _text_source(self, section: TextSection) -> CalibrationSource | None:
        """Return the column of a data set on the hub or in the mirror; None: the text does not come from there."""
        repository = text_repository(section, self.manifest)
        if repository is None:
            return None
        return CalibrationSource(
            repo_id=repository.id,
            commit=self._commit(repository) or repository.requested,
            config=section.config or DEFAULT_CONFIG,
            split=section.split,
            column=section.column,
        )

    def _digest(
        self,
        path: Path | None,
        compute: Callable[[Path], str],
        recorded: str | None,
        key_path: KeyPath,
        missing: str,
        *,
        is_staged: bool = False,
    ) -> str | None:
        """Return the digest of `path`, which must equal `recorded`; if the path does not exist, return `recorded`.

        Rehearsals read no files, so nothing is missing.

        Args:
            path: file or folder; None if it comes from the hub.
            compute: function from a path to its digest.
            recorded: digest in the manifest, if any.
            key_path: key of `recorded`.
            missing: sentence to report if the path does not exist, without the fix.
            is_staged: whether `hpcq stage` brings it.
        """
        if path is None or self.manifest.is_synthetic:
            return recorded
        if not path_exists(path):
            self._add_missing(missing, None if is_staged else path)
            return recorded
        try:
            digest = compute(path)
        except OSError as error:
            self._add_problem(key_path[:-1], f"{error.filename or path} cannot be read ({error.strerror}).")
            return recorded
        if recorded not in (None, digest):
            hint = "Restore the recorded version, or " + (
                "submit the manifest of which this is the lock file." if self.manifest.locked else "remove this line."
            )
            self._add_problem(key_path, f"{path} has changed: its SHA-256 is now {digest}. {hint}")
        return digest

    def _add_missing(self, sentence: str, folder: Path | None) -> None:
        """Record a missing input, which is staged, or which the user has to put in `folder`."""
        if folder is None:
            self.missing.append(f"{sentence}: {_stage_hint(self.manifest)}")
        else:
            self.absent.append(f"{sentence}: its folder {folder} does not exist. Correct the path, or copy it there.")

    def _add_problem(self, key_path: KeyPath, sentence: str) -> None:
        self.problems.append(self.manifest.source.message(key_path, sentence))


def items_digest(named: NamedTask) -> Callable[[Path], str]:
    """Return the function that computes the digest of a task's items in a folder."""
    members = named.members if named.info and named.info.is_group else ()
    return partial(digest_of_items, members=members)


def _stage_hint(manifest: Manifest) -> str:
    return f"run `hpcq stage {manifest.source.path or 'MANIFEST'}`."


def run_layout(manifest: Manifest) -> RunLayout:
    """Return the folders of the manifest's run."""
    paths = manifest.paths
    return RunLayout(
        name=manifest.run.name,
        runs=Path(paths.runs).expanduser().absolute(),
        checkpoints=Path(paths.checkpoints).expanduser().absolute(),
        logs=Path(paths.logs).expanduser().absolute(),
        trusted_users=paths.trusted_users,
        trusted_groups=paths.trusted_groups,
    )


def _fallback(context: Context) -> EvaluateSettings | None:
    """Return the settings of the backend's fallback, which supports more models and schemes, but is slower."""
    section = context.manifest.evaluate
    settings = _evaluate_settings(context, section.backend)
    fallback = backends()[settings.placement_backend].fallback
    if fallback is None or not section.fallback:
        return None
    if settings.emulate:
        return replace(settings, emulate=fallback, engine=())
    return _evaluate_settings(context, fallback)


def _evaluate_settings(context: Context, backend: str) -> EvaluateSettings:
    """Return the settings for `backend`. `evaluate.environment` applies only to the manifest's own backend."""
    section = context.manifest.evaluate
    synthetic = section.synthetic or SyntheticSection()
    named = section.environment if backend == section.backend else None
    return EvaluateSettings(
        backend=backend,
        environment=named or _default_environment(backend, context.cluster),
        dtype=section.dtype,
        batch_size=section.batch_size,
        shards=section.shards,
        flush_interval_s=section.flush_interval_s,
        device=section.device,
        seed=section.seed,
        prefix_sharing=section.prefix_sharing,
        add_eos=section.add_eos,
        max_length=section.max_length,
        engine=_engine_arguments(section) if backends()[synthetic.emulate or backend].has_engine_options else (),
        synthetic_options=tuple(synthetic.model_dump(exclude={"emulate"}).items()) if backend == SYNTHETIC else (),
        emulate=synthetic.emulate,
        offload=section.offload,
    )


def _engine_arguments(section: EvaluateSection) -> tuple[tuple[str, int | float | bool], ...]:
    return tuple(section.engine.model_dump(exclude_none=True).items()) if section.engine else ()


def _emulated_backend(section: EvaluateSection) -> str | None:
    return section.synthetic.emulate if section.synthetic else None


def _default_environment(backend: str, profile: Profile) -> str:
    node_classes = [each for each in profile.gpu_classes.values() if UnitKind.EVALUATE.value in each.roles]
    info = backends()[backend]
    has_gpus = any(each.gpus_per_node for each in node_classes)
    return info.environment if has_gpus else info.cpu_environment or info.environment


def _quantize_settings(manifest: Manifest, tools: Collection[str]) -> QuantizeSettings:
    """Return the settings; the environment is that of all `tools`, if they have the same one."""
    defaults = {quantizers()[tool].environment for tool in tools}
    common = defaults.pop() if len(defaults) == 1 else None
    return QuantizeSettings(
        environment=manifest.quantize.environment or common,
        device=manifest.quantize.device,
        max_fallback_share=manifest.quantize.max_fallback_share,
    )


def _notes(context: Context, models: Sequence[Model], tasks: tuple[Task, ...]) -> Iterator[str]:
    """Yield caveats about the models, then about the tasks' items, then about their number."""
    manifest = context.manifest
    for named, model in zip(context.models, models, strict=True):
        yield from (f"{model.id}: {note}" for note in model.notes)
        for one in named.checkpoints:
            yield from one.notes
            if manifest.is_synthetic and one.scheme is None:
                yield f"{one.text}: not rehearsed, because its configuration is not on this file system."
    yield from code_notes(context)
    yield from prompt_notes(context)
    yield from repetition_notes(context)
    yield from context.pins.notes()
    if manifest.tasks.data == "packages":
        for task in tasks:
            yield from (f"{task.name}: {note}" for note in packages.dataset_notes(task.name))
    counts_by_task = {task.name: item_counts(task, manifest) for task in tasks}
    partial = [f"{name} {counts[0]} of {counts[1]}" for name, counts in counts_by_task.items() if counts]
    subtasks = {named.name: named.info.num_subtasks for named in context.tasks if named.info}
    partial += [
        f"{task.name} {most}"
        for task in tasks
        if counts_by_task[task.name] is None and (most := most_items(task, subtasks.get(task.name, 1)))
    ]
    if partial:
        yield f"Only some of the items were used ({', '.join(partial)}): see the standard errors."
