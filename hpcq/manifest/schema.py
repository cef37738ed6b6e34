"""Schema of the manifest: every key with its type, default and description, and the checks within one table.

Checks across tables, or against the file system, are in checks.py. A test compares docs/manifest.md with this schema.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    PlainValidator,
    PrivateAttr,
    Tag,
    ValidationInfo,
    model_validator,
)

from hpcq.catalog.calibration_sets import expanded_calibration
from hpcq.catalog.published_scores import study_names
from hpcq.catalog.schemes import (
    CacheFormat,
    Granularity,
    NumberFormat,
    method_names,
    scheme_names,
    split_group_size,
    without_default_tool,
)
from hpcq.catalog.tasks import find_suite, suite_names
from hpcq.catalog.tools import backends, quantizers
from hpcq.core.addressing import VARIANT_SEPARATOR, slug
from hpcq.core.work_records import SYNTHETIC, UNQUANTIZED, UnitKind
from hpcq.manifest.error_messages import did_you_mean, format_value, unknown_name
from hpcq.manifest.field_types import (
    ItemRanges,
    LayerPatterns,
    Name,
    Names,
    NonBlankStr,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Seed,
    Sha256,
    no_duplicates,
    validation_error,
)
from hpcq.manifest.profiles import Profile
from hpcq.manifest.prompt_section import GenerationSection, PromptSection, TaskPromptSection
from hpcq.manifest.value_origin import Source
from hpcq.manifest.vllm_options import EngineSection

DEFINED_SCHEMES = "defined_schemes"
"""Key of the names from `schemes.define` in pydantic's validation context."""

MAX_SHARDS = 10_000

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAX_RUN_NAME_LENGTH = 100


def _run_name(name: str) -> str:
    if not _RUN_NAME.fullmatch(name) or len(name) > _MAX_RUN_NAME_LENGTH:
        raise validation_error(
            f"'{name}' is not a valid run name: use 1 to {_MAX_RUN_NAME_LENGTH} letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit."
        )
    return name


def _scheme_name(name: str) -> str:
    """Reject names that ids of units cannot contain: ids are parsed, and selected by the names of their parts."""
    if VARIANT_SEPARATOR in slug(name):
        raise validation_error(f"'{name}' would make ids ambiguous: use letters, digits, '.', '_' and single '-'.")
    if slug(name) in list(UnitKind):
        raise validation_error(f"'{name}' is a kind of unit, which `hpcq cancel {name}` selects: choose another name.")
    return name


def _known_scheme(name: str, info: ValidationInfo) -> str:
    """Reject a name that is unknown both with and without its group size."""
    if info.context is not None:
        known = (*scheme_names(), *info.context.get(DEFINED_SCHEMES, ()))
        plain = without_default_tool(name)
        base, _, size = plain.rpartition("-g")
        if base in known and size.isdecimal() and not int(size):
            raise validation_error(f"'{name}' does not exist: the group size must be 1 or more.")
        if plain not in known and split_group_size(plain)[0] not in known:
            raise validation_error(unknown_name("scheme", name, known))
    return name


def _known_suite(name: str) -> str:
    if find_suite(name) is None:
        raise validation_error(unknown_name("suite", name, suite_names()))
    return name


def _known_study(name: str) -> str:
    if name not in study_names():
        raise validation_error(unknown_name("study", name, study_names()))
    return name


def _quoted(names: Iterable[str]) -> str:
    return " and ".join(f"'{name}'" for name in names)


def _one_of(names: Callable[[], tuple[str, ...]]) -> PlainValidator:
    """Return a validator of names in the registry, which installed plugins extend: `names` is called each time."""

    def check(value: object) -> object:
        known = names()
        if value not in known:
            shown = format_value(value)
            hint = did_you_mean(shown.strip("'"), known)
            raise validation_error(f"must be one of {', '.join(known)}, not {shown}.{hint}")
        return value

    return PlainValidator(check, json_schema_input_type=str)


BackendName = Annotated[str, _one_of(lambda: tuple(backends()))]
EmulatedName = Annotated[str, _one_of(lambda: tuple(name for name in backends() if name != SYNTHETIC))]
ToolName = Annotated[str, _one_of(lambda: (UNQUANTIZED, *quantizers()))]
MethodName = Annotated[str, _one_of(method_names)]
SchemeName = Annotated[NonBlankStr, AfterValidator(_known_scheme)]
SchemeNames = Annotated[tuple[SchemeName, ...], Field(strict=False), AfterValidator(no_duplicates)]
TaskNames = Annotated[tuple[NonBlankStr, ...], Field(strict=False), AfterValidator(no_duplicates)]
SuiteNames = Annotated[
    tuple[Annotated[NonBlankStr, AfterValidator(_known_suite)], ...], Field(strict=False), AfterValidator(no_duplicates)
]
StudyNames = Annotated[
    tuple[Annotated[NonBlankStr, AfterValidator(_known_study)], ...], Field(strict=False), AfterValidator(no_duplicates)
]


class RunSection(Section):
    """Name of the run."""

    name: Annotated[NonBlankStr, AfterValidator(_run_name)] = Field(
        description="Name of the run and its folder: letters, digits, '.', '_' and '-'."
    )
    description: str = Field("", description="Free text without effect.")


class PathsSection(Section):
    """Output folders; relative to the working directory."""

    runs: Name = Field("runs", description="Folder of the runs: lock files, partial results, results.")
    checkpoints: Name = Field("checkpoints", description="Folder of quantized checkpoints, shared by all runs.")
    logs: Name = Field("logs", description="Folder of the job logs.")
    cache: Name | None = Field(
        None,
        description="Folder on the shared file system for models and data from the hub; by default that of the hub's "
        "client (HF_HOME, HF_HUB_CACHE).",
    )
    trusted_users: Names = Field(
        (),
        description="Users who may own folders above `runs`, `logs` and hpcq's cache, besides you and root. They could "
        "run commands as you (docs/cluster.md).",
    )
    trusted_groups: Names = Field(
        (),
        description="Groups that may write to these folders, such as the group of your project. Their members could "
        "run commands as you.",
    )


class ClusterSection(Section):
    """The cluster to run on."""

    profile: Annotated[
        Annotated[NonBlankStr, Tag("text")] | Annotated[Profile, Tag("table")],
        Discriminator(lambda value: "table" if isinstance(value, dict | Profile) else "text"),
    ] = Field(
        "local",
        description="'local' (this machine), 'auto', or the path of a profile, searched in the manifest's folder, the "
        "working directory and manifests/clusters. Lock files contain the profile itself, as a table.",
    )


class DataSection(Section):
    """Source of the models and data that the manifest names by their id on the hub."""

    mirror: Name | None = Field(
        None,
        description="Folder that replaces the hub: models/<organization>/<name>/ and datasets/<organization>/<name>/.",
    )
    revisions: dict[NonBlankStr, NonBlankStr] = Field(
        {}, description="Branch, tag or commit of data sets on the hub, by id; by default main."
    )


class ModelEntry(Section):
    """A base checkpoint."""

    id: Name | None = Field(None, description="Model id on the hub; with `path`, a name of your choice.")
    path: Name | None = Field(
        None, description="Folder of a local checkpoint, relative to the manifest or to the working directory."
    )
    source: Literal["hub", "packages"] = Field(
        "hub", description="Source of the model: 'hub' (or the mirror), or 'packages' (a public package)."
    )
    revision: Name | None = Field(
        None, description="Branch, tag or commit on the hub, by default main; not with `path`."
    )
    trust_remote_code: bool = Field(False, description="Allow Python code from the checkpoint.")
    schemes: SchemeNames | None = Field(None, description="Schemes for this model; replaces `schemes.use`.")
    checkpoints: Names = Field(
        (),
        description="Checkpoints of this model that others quantized: ids on the hub ('org/name', 'org/name@revision') "
        "or folders (beginning with '/', './', '../' or '~'). With `schemes = []`, the model itself is not evaluated.",
    )
    digest: Sha256 | None = Field(None, description="Expected SHA-256 of the checkpoint; `submit` records it.")
    checkpoint_digests: dict[str, Sha256] = Field(
        {}, description="Expected SHA-256 of the folders in `checkpoints`; `submit` records them."
    )

    @model_validator(mode="after")
    def _check_origin(self) -> Self:
        if self.id is None and self.path is None:
            raise validation_error("is missing. Give the model's id on the hub, or the path of its checkpoint.", "id")
        if self.revision is not None and not self.is_on_hub:
            other = "path: a local checkpoint" if self.path is not None else "source = 'packages': a package"
            raise validation_error(f"is not allowed with {other} has no revisions.", "revision")
        return self

    @property
    def is_on_hub(self) -> bool:
        """Whether the checkpoint comes from the hub or its mirror."""
        return self.path is None and self.source == "hub"


class ScaleMappingSection(Section):
    """Layers between which SmoothQuant or AWQ moves scales."""

    smooth: NonBlankStr = Field(
        description="Layer whose outputs are divided by the scales, such as a norm: a full name, or 're:' and a "
        "regular expression."
    )
    balance: Annotated[tuple[NonBlankStr, ...], Field(strict=False, min_length=1)] = Field(
        description="Linear layers that read these outputs: full names, or 're:' and regular expressions."
    )


class SchemeDefinition(Section):
    """A custom scheme: a known one with changes, or (without `base`) a complete one."""

    name: Annotated[Name, AfterValidator(_scheme_name)] = Field(
        description="Name of the scheme; overrides a scheme of that name in the catalog."
    )
    base: SchemeName | None = Field(None, description="Scheme to start from.")
    tool: ToolName | None = Field(
        None,
        description="Quantization tool: none, llmcompressor, autogptq, autoawq, gptqmodel, autoround, bitsandbytes, "
        "synthetic (a rehearsal), or that of a plugin.",
    )
    method: MethodName | None = Field(
        None,
        description="Quantization method: none, rtn, gptq, awq, smoothquant, autoround, llm-int8, synthetic, or that "
        "of a plugin's tool.",
    )
    weights: NumberFormat | None = Field(None, description="Number format of the weights.")
    activations: NumberFormat | None = Field(None, description="Number format of the activations.")
    granularity: Granularity | None = Field(
        None, description="Granularity of the weights' scales; `group_size` implies 'group'."
    )
    group_size: PositiveInt | None = Field(
        None,
        description="Input features per scale; implies granularity 'group'. With 'block', outputs per scale, too.",
    )
    symmetric: bool | None = Field(None, description="Symmetric quantization of the weights, without zero points.")
    dynamic: bool | None = Field(None, description="Compute activation scales at run time.")
    damping: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="GPTQ: fraction of the mean diagonal that is added to the Hessian."
    )
    activation_order: bool | None = Field(None, description="GPTQ: process columns in order of decreasing activation.")
    smoothing_strength: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="SmoothQuant: migration strength from activations to weights (alpha)."
    )
    tuning_steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="AutoRound: steps per block; the tool's default is 200."
    )
    mappings: Annotated[tuple[ScaleMappingSection, ...], Field(strict=False)] | None = Field(
        None,
        description="SmoothQuant and AWQ: layers between which scales are moved; by default the tool's table for the "
        "family. A mapping that changes what the model computes is refused by the unit.",
    )
    kv_cache: CacheFormat | None = Field(
        None, description="Number format of the KV cache; by default it is not quantized. Only vllm computes it."
    )
    ignore: LayerPatterns | None = Field(
        None,
        description="Linear layers that are not quantized: full names, or 're:' and a regular expression that matches "
        "from the beginning of a name. The list replaces the default ['lm_head'].",
    )


class SchemesSection(Section):
    """Quantization schemes."""

    use: SchemeNames = Field((), description="Schemes for every model without its own list.")
    define: Annotated[tuple[SchemeDefinition, ...], Field(strict=False)] = Field((), description="Custom schemes.")


class CalibrationSection(Section):
    """Calibration set of the schemes that need one."""

    dataset: Name = Field(
        "boolq-passages",
        description='A text that a package contains, the path of a .jsonl ({"text": …}) or .txt file '
        "(paragraphs), a data set on the hub, or the name of one: wikitext2, pile-val, pile-10k, ultrachat, "
        "llm-compression-calibration; or random-tokens.",
    )
    config: NonBlankStr | None = Field(None, description="Configuration of the data set on the hub.")
    split: NonBlankStr = Field("train", description="Split of the data set on the hub.")
    column: NonBlankStr = Field(
        "text", description="Column of the data set or key in the .jsonl file: texts, or messages of chats."
    )
    revision: Name | None = Field(None, description="Branch, tag or commit on the hub; by default main.")
    samples: PositiveInt = Field(128, description="Number of sequences.")
    sequence_length: PositiveInt = Field(2048, description="Tokens per sequence.")
    chat_template: bool | None = Field(
        None,
        description="Render passages with the model's chat template: a text as one message of the user. By default "
        "chats are rendered and texts are not; false: the contents of a chat's messages are joined.",
    )
    add_bos: bool = Field(False, description="Begin each sequence with the model's BOS token.")
    seed: Seed = Field(1234, description="Seed of the order of the passages, or of random tokens.")
    digest: Sha256 | None = Field(None, description="Expected SHA-256 of the text; `submit` records it.")

    @model_validator(mode="before")
    @classmethod
    def _expand_name(cls, table: Any) -> Any:
        return expanded_calibration(table) if isinstance(table, dict) else table


class FidelitySection(Section):
    """Fidelity panel: a held-out text on which next-token distributions are compared with the unquantized model's."""

    tokens: PositiveInt = Field(50_000, description="Tokens that each variant reads, rounded up to whole windows.")
    window: Annotated[int, Field(ge=2)] = Field(
        512, description="Tokens per window. The intervals take windows as independent."
    )
    dataset: Name = Field(
        "boolq-passages",
        description="As in `[calibration]`: a text that a package contains, the path of a .jsonl or .txt file, or a "
        "data set on the hub. Passages that the calibration may read are left out.",
    )
    config: NonBlankStr | None = Field(None, description="Configuration of the data set on the hub.")
    split: NonBlankStr = Field("test", description="Split of the data set on the hub.")
    column: NonBlankStr = Field("text", description="Column of the data set or key in the .jsonl file, with texts.")
    revision: Name | None = Field(None, description="Branch, tag or commit on the hub; by default main.")
    seed: Seed = Field(1234, description="Seed of the order of the passages.")
    digest: Sha256 | None = Field(None, description="Expected SHA-256 of the text; `submit` records it.")

    @property
    def windows(self) -> int:
        """Number of windows."""
        return -(-self.tokens // self.window)


DATA_SOURCES = ("hub", "packages")
"""Values of `tasks.data` that are not the path of a folder."""

TextSection = CalibrationSection | FidelitySection
"""A table that names a text."""


class SampleSection(Section):
    """A random sample of items, the same for every variant."""

    n: PositiveInt = Field(description="Number of items of the task.")
    seed: Seed = Field(0, description="Seed of the sample. A larger sample of the same seed contains a smaller one.")
    stratify: bool = Field(
        True, description="Take the same number of items from each subtask of a group; all items of smaller subtasks."
    )


class TaskOptions(Section):
    """Settings of one task."""

    limit: PositiveInt | None = Field(
        None, description="Evaluate the first N items; replaces `tasks.limit` and `tasks.sample`."
    )
    sample: SampleSection | None = Field(
        None, description="Evaluate a random sample; replaces `tasks.limit` and `tasks.sample`."
    )
    items: (
        Annotated[
            Annotated[Name, Tag("text")] | Annotated[dict[Name, ItemRanges], Tag("table")],
            Discriminator(lambda value: "table" if isinstance(value, dict) else "text"),
        ]
        | None
    ) = Field(
        None,
        description="File with the numbers of the items to evaluate, counted from 0: a JSON list, an object with a "
        "list per subtask (lm-eval's --samples), or a number per line. Lock files contain the numbers, as a table.",
    )
    num_fewshot: NonNegativeInt | None = Field(
        None, description="Number of few-shot examples; replaces the number of the suite or the task."
    )
    max_gen_toks: PositiveInt | None = Field(
        None, description="Maximum generated tokens; replaces the number of the task."
    )
    repeats: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        None, description="Sampled texts per prompt, each with its own seed (avg@n, pass@k); by default the task's."
    )
    prompt: TaskPromptSection | None = Field(None, description="Prompts of this task; keys replace those of [prompt].")
    gen_kwargs: GenerationSection | None = Field(
        None, description="Generation arguments of this task; keys replace those of [generation]."
    )
    digest: Sha256 | None = Field(None, description="Expected SHA-256 of the items; `submit` records it.")

    @model_validator(mode="after")
    def _check_selection(self) -> Self:
        given = [key for key in ("limit", "sample", "items") if getattr(self, key) is not None]
        if len(given) > 1:
            raise validation_error(f"selects items, as '{given[0]}' does: remove one of them.", given[1])
        return self


class TasksSection(Section):
    """Tasks to evaluate."""

    suites: SuiteNames = Field(
        (), description="Suites of tasks: openllm-v1, openllm-v2, mt-bench, study, qwen, reasoning, long-context."
    )
    use: TaskNames = Field((), description="Tasks, groups and tags, by name in lm-eval or in `include`.")
    include: Names = Field(
        (), description="Folders with your own definitions of tasks, in lm-eval's YAML; relative to the manifest."
    )
    trust_code: bool = Field(False, description="Allow Python functions in the definitions of `include`.")
    allow_code_execution: bool = Field(
        False, description="Allow tasks that run code that the models write (HumanEval, MBPP), in a sandbox."
    )
    limit: PositiveInt | None = Field(None, description="Evaluate the first N items of each task; by default all.")
    sample: SampleSection | None = Field(None, description="Evaluate a random sample of each task.")
    data: Name = Field(
        "hub",
        description="Source of the items: 'hub', 'packages' (those that hpcq can stage), or a folder with "
        "<task>/<split>.jsonl, for each member of a group.",
    )
    options: dict[NonBlankStr, TaskOptions] = Field({}, description="Settings per task, by name.")

    @model_validator(mode="after")
    def _check_selection(self) -> Self:
        if self.limit is not None and self.sample is not None:
            raise validation_error("selects items, as 'limit' does: remove one of them.", "sample")
        return self


class SyntheticSection(Section):
    """Settings of the synthetic backend, which rehearses a run without a model."""

    request_seconds: NonNegativeFloat = Field(0.0, description="Seconds per request.")
    load_seconds: NonNegativeFloat = Field(0.0, description="Seconds to load the model.")
    memory_gib: NonNegativeFloat = Field(0.0, description="Host memory that a unit allocates, GiB.")
    emulate: EmulatedName | None = Field(
        None,
        description="Backend to emulate, such as vllm: units get the GPUs and nodes that it needs, and are refused "
        "if it cannot run them. By default kernels are not checked, and a unit takes one node.",
    )


class EvaluateSection(Section):
    """Settings of the evaluation."""

    backend: BackendName = Field(
        "accelerate", description="Backend: accelerate, vllm, synthetic (a rehearsal), or that of a plugin."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Data type of the computation; 'auto': that of the scheme (bf16, fp16, fp32), bfloat16 for "
        "quantized weights.",
    )
    batch_size: PositiveInt = Field(
        8,
        description="Batch size of generation, and of other requests without prefix sharing. Ignored by vllm, which "
        "batches itself.",
    )
    fallback: bool = Field(
        True,
        description="Use accelerate if vllm (or a plugin that names it as its fallback) does not support the "
        "architecture, number format or GPU.",
    )
    offload: Literal["none", "cpu", "disk"] = Field(
        "none",
        description="Where accelerate may put weights that do not fit on the GPUs: 'cpu' (host memory) or 'disk' (host "
        "memory, then the node's local disk). Slow; used only if the weights fit on no node class.",
    )
    prefix_sharing: bool = Field(True, description="Compute prefixes that requests share once.")
    add_eos: bool = Field(
        True,
        description="Keep the end tokens that a tokenizer appends to every text, as lm-eval does; false: remove them.",
    )
    max_length: PositiveInt | None = Field(
        None, description="Maximum tokens of prompt and answer; by default the model's context length."
    )
    shards: Annotated[
        Annotated[Literal["auto"], Tag("text")] | Annotated[int, Field(ge=1, le=MAX_SHARDS), Tag("number")],
        Discriminator(lambda value: "text" if value == "auto" else "number"),
    ] = Field(
        "auto",
        description="Number of jobs per variant. 'auto': as many as the time limit requires, or as the objective "
        "'makespan' gains from. A run keeps the number of its first submission.",
    )
    flush_interval_s: PositiveFloat = Field(
        30.0, description="Maximum seconds until a response is committed; a kill loses at most these."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device of the computation.")
    environment: Name | None = Field(
        None,
        description="Python environment; by default the backend's: transformers, vllm (vllm-cpu if no class with the "
        "role evaluate has GPUs), core, or a plugin's.",
    )
    seed: Seed = Field(1234, description="Seed of all random choices, including few-shot examples.")
    engine: EngineSection | None = Field(None, description="vLLM engine arguments.")
    synthetic: SyntheticSection | None = Field(None, description="Settings of the synthetic backend.")

    @model_validator(mode="after")
    def _check_synthetic(self) -> Self:
        if self.synthetic is not None and self.backend != SYNTHETIC:
            raise validation_error(f"is not allowed with backend '{self.backend}', only with 'synthetic'.", "synthetic")
        return self

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        # Ignored by the synthetic backend, so that every manifest can be rehearsed.
        if self.engine is None or self.backend == SYNTHETIC:
            return self
        if not backends()[self.backend].has_engine_options:
            accepting = _quoted(name for name, info in backends().items() if info.has_engine_options)
            raise validation_error(f"is not allowed with backend '{self.backend}', only with {accepting}.", "engine")
        return self

    @model_validator(mode="after")
    def _check_offload(self) -> Self:
        if self.offload == "none":
            return self
        own = backends()[self.backend]
        substitute = backends()[own.fallback] if own.fallback and self.fallback else None
        if self.backend != SYNTHETIC and not own.offloads and not (substitute and substitute.offloads):
            offloading = _quoted(name for name, info in backends().items() if info.offloads)
            setting = " and fallback = false" if own.fallback else ""
            raise validation_error(
                f"is not allowed with backend '{self.backend}'{setting}: only {offloading} offloads.", "offload"
            )
        if self.offload == "cpu" and self.device == "cpu":
            raise validation_error(
                "must be 'disk' or 'none' with device 'cpu': the weights are in host memory already.", "offload"
            )
        return self


class QuantizeSection(Section):
    """Settings of the quantization."""

    environment: Name | None = Field(
        None,
        description="Python environment of all tools; by default each has its own: transformers, core for rehearsals, "
        "or a plugin's.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device of the computation.")
    max_fallback_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01,
        description="Largest share of layers that may be quantized by a simpler method than the scheme's, such as "
        "rounded to nearest where GPTQ cannot invert a Hessian. Above it the unit fails.",
    )


class PlanSection(Section):
    """Settings of the planner, and confirmation of large runs."""

    objective: Literal["gpu-hours", "makespan"] = Field(
        "gpu-hours",
        description="What to minimize: the estimated GPU-hours, or the makespan (time until the whole run is done).",
    )
    keep_gpu_class: bool = Field(
        True,
        description="A variant that has started stays on its GPU class. 'false': the planner may move it to a class "
        "that needs fewer GPU-hours; its responses then come from two classes.",
    )
    confirm_above_gpu_hours: PositiveFloat | None = Field(
        None, description="Ask for confirmation in `submit` and `resume` above these estimated GPU-hours."
    )


class RetriesSection(Section):
    """Limits of automatic retries."""

    max_attempts_without_progress: PositiveInt = Field(
        5, description="Consecutive attempts without a committed response after which a unit fails."
    )
    gpu_hours: PositiveFloat | None = Field(
        None, description="GPU-hours of all attempts of the run after which nothing is retried."
    )
    max_excluded_nodes: NonNegativeInt = Field(
        4, description="Maximum faulty nodes that are excluded at once; enough nodes for a unit always remain."
    )
    exclude_hours: PositiveFloat = Field(24.0, description="Hours until a faulty node is used again.")


class ReportSection(Section):
    """Contents of the report."""

    compare: StudyNames = Field((), description="Published studies to compare the scores with.")
    margin_points: PositiveFloat = Field(
        1.0, description="Largest difference from the unquantized model that counts as equivalent, percentage points."
    )


class LockedRepository(Section):
    """A repository on the hub whose revision was resolved to a commit."""

    kind: Literal["model", "dataset"] = Field(description="Kind of the repository.")
    id: NonBlankStr = Field(description="Id of the repository.")
    requested: NonBlankStr = Field(description="Branch, tag or commit in the manifest.")
    commit: NonBlankStr = Field(description="The commit that the run uses.")
    moved_to: NonBlankStr | None = Field(
        None, description="Commit that `requested` pointed to at a later submission, which the run does not use."
    )


class LockedSection(Section):
    """Record in lock files; do not write this table yourself."""

    hpcq: NonBlankStr = Field(description="Version of hpcq that wrote the lock file.")
    repositories: Annotated[tuple[LockedRepository, ...], Field(strict=False)] = Field(
        (), description="Commits of the repositories on the hub."
    )
    versions: dict[NonBlankStr, dict[NonBlankStr, str]] = Field(
        {}, description="Versions of the tools, by Python environment."
    )


class Manifest(Section):
    """A manifest as the user wrote it, with defaults."""

    run: RunSection = Field(description="Add a table [run] with the name of the run.")
    paths: PathsSection = Field(PathsSection.model_construct(), description="Output folders.")
    cluster: ClusterSection = Field(ClusterSection.model_construct(), description="The cluster to run on.")
    data: DataSection = Field(
        DataSection.model_construct(), description="Source of models and data that are named by id."
    )
    models: Annotated[tuple[ModelEntry, ...], Field(strict=False)] = Field(
        description="Add a table [[models]] for each base checkpoint."
    )
    schemes: SchemesSection = Field(SchemesSection.model_construct(), description="Quantization schemes.")
    calibration: CalibrationSection = Field(CalibrationSection.model_construct(), description="Calibration set.")
    tasks: TasksSection = Field(TasksSection.model_construct(), description="Tasks to evaluate.")
    fidelity: FidelitySection | None = Field(None, description="Fidelity panel; without this table there is none.")
    prompt: PromptSection = Field(PromptSection.model_construct(), description="How prompts are made of items.")
    generation: GenerationSection = Field(
        GenerationSection.model_construct(), description="Generation arguments of all tasks that generate text."
    )
    evaluate: EvaluateSection = Field(EvaluateSection.model_construct(), description="Settings of the evaluation.")
    quantize: QuantizeSection = Field(QuantizeSection.model_construct(), description="Settings of the quantization.")
    plan: PlanSection = Field(PlanSection.model_construct(), description="Settings of the planner.")
    retries: RetriesSection = Field(RetriesSection.model_construct(), description="Limits of automatic retries.")
    report: ReportSection = Field(ReportSection.model_construct(), description="Contents of the report.")
    locked: LockedSection | None = Field(None, description="Record in lock files.")

    _source: Source = PrivateAttr(default_factory=Source)

    @property
    def is_synthetic(self) -> bool:
        """Whether the backend is synthetic: models, items and calibration text are not read."""
        return self.evaluate.backend == SYNTHETIC

    @property
    def source(self) -> Source:
        """The file and the overrides that this manifest was read from."""
        return self._source

    def with_source(self, source: Source) -> Self:
        """Return a copy with `source`."""
        copy = self.model_copy()
        copy._source = source  # noqa: SLF001 (its own)
        return copy
