"""Records of work: what a unit does, on which model, with which scheme and tasks.

Workers receive one of the `*Work` records; the planner builds them. Content addresses are made of the field names and
values of these records (`hpcq.core.addressing`): renaming an addressed field changes every address.
"""

from __future__ import annotations

import dataclasses
import re
from enum import StrEnum
from functools import cached_property
from typing import Literal

from hpcq.core.addressing import DIGEST_CHARACTERS, VARIANT_SEPARATOR, address_of, slug, unaddressed
from hpcq.core.frozen import dataclass
from hpcq.core.hub_cache import HubCache, RepoKind
from hpcq.core.item_selection import ItemSelection
from hpcq.core.node_context import NodeContext
from hpcq.core.prompt_settings import AS_DEFINED, LM_EVAL_PROMPT, Prompt, Sampling

SYNTHETIC = "synthetic"
"""Name of the backend, the tool and the method of a rehearsal."""

UNQUANTIZED = "none"
"""Name of the tool and the method of an unmodified base checkpoint."""

PANEL_TASK = "fidelity_panel"
"""Name of the fidelity panel among the tasks of an evaluation. It has responses, but no score."""

Versions = tuple[tuple[str, str], ...]
"""Distribution names and exact versions of the tools that can change a result, sorted by name."""


class UnitKind(StrEnum):
    """Kind of work that a unit does."""

    STAGE = "stage"
    QUANTIZE = "quantize"
    EVALUATE = "evaluate"
    JUDGE = "judge"
    MERGE = "merge"


class UnitState(StrEnum):
    """State of a unit. The store takes precedence: a unit with committed work is DONE, even if its job is queued."""

    WAITING = "waiting"
    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A base checkpoint.

    A known `digest` identifies the model alone; otherwise `id` and `revision` do.

    Attributes:
        id: Name on the hub, or a path.
        revision: Commit on the hub.
        digest: SHA-256 over weight, configuration and tokenizer files (None: not on this file system yet).
        trust_remote_code: Allow code from the checkpoint to run.
        path: Folder of the checkpoint.
        notes: Remarks for reports.
    """

    id: str
    revision: str | None = None
    digest: str | None = None
    trust_remote_code: bool = False
    path: str | None = unaddressed(None)
    notes: tuple[str, ...] = unaddressed(())

    @property
    def slug(self) -> str:
        """Last part of the id as a slug: 'huggingfacetb/SmolLM2-135M' becomes 'smollm2-135m'."""
        return slug(self.id.rstrip("/").rsplit("/", 1)[-1])


def default_compute_dtype(weights: str) -> str:
    """Return the data type in which weights of a type (`Scheme.weights`) are computed: bfloat16 if quantized."""
    return {"fp32": "float32", "fp16": "float16"}.get(weights, "bfloat16")


@dataclass(frozen=True, kw_only=True)
class ScaleMapping:
    """Layers between which SmoothQuant or AWQ moves scales. Names are exact, or "re:" and a regular expression.

    Attributes:
        smooth: Layer whose outputs are divided by the scales, such as a norm.
        balance: Linear layers that read these outputs; their weights are multiplied by the scales.
    """

    smooth: str
    balance: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How to quantize.

    Attributes:
        name: Name in the manifest.
        tool: Quantization tool; 'none' for an unmodified base checkpoint.
        method: none, rtn (round to nearest), gptq, awq, smoothquant (smoothing, then gptq), autoround, llm-int8,
            synthetic, or a plugin's.
        weights: Data type of the weights: fp32, bf16, fp16, fp8_e4m3, int8, int4, int3, int2, nf4, fp4, nvfp4, mxfp4,
            mxfp8, or one that only checkpoints of others have (`hpcq.catalog.checkpoint_formats`).
        activations: Data type of the activations, as for `weights`.
        granularity: Granularity of the weights' scales: tensor, channel, group (of `group_size` inputs) or block (of
            `group_size` inputs and as many outputs).
        group_size: Inputs per group.
        symmetric: Quantize the weights symmetrically.
        dynamic: Compute activation scales at run time, per token; False: once, from the calibration set.
        damping: GPTQ: fraction of the mean diagonal that is added to the Hessian.
        activation_order: GPTQ: quantize columns in the order of decreasing activation.
        smoothing_strength: SmoothQuant's migration strength (alpha).
        mappings: Layers between which SmoothQuant or AWQ moves scales; empty: the tool's table for the model's family.
        kv_cache: Data type of the KV cache (fp8_e4m3, with one calibrated scale per layer for keys and one for values);
            None: not quantized.
        ignore: Modules that stay unquantized.
        checkpoint_format: Format of the checkpoint's files, such as gptq or awq; None: compressed-tensors that hpcq
            writes.
        tuning_steps: AutoRound: steps per block; None: the tool's default.
        needs_calibration: The method uses a calibration set.
    """

    name: str = unaddressed()
    tool: str
    method: str
    weights: str
    activations: str
    granularity: str = "channel"
    group_size: int | None = None
    symmetric: bool = True
    dynamic: bool = False
    damping: float | None = None
    activation_order: bool | None = None
    smoothing_strength: float | None = None
    mappings: tuple[ScaleMapping, ...] = ()
    kv_cache: str | None = None
    ignore: tuple[str, ...] = ("lm_head",)
    checkpoint_format: str | None = None
    tuning_steps: int | None = None
    needs_calibration: bool = unaddressed(False)

    @property
    def slug(self) -> str:
        """The name as a slug, without the separator of ids, which the name of a checkpoint's folder may contain."""
        return re.sub("-{2,}", "-", slug(self.name))

    @property
    def is_quantized(self) -> bool:
        """False for an unmodified base checkpoint."""
        return self.tool != UNQUANTIZED

    @property
    def quantizes_activations(self) -> bool:
        """Whether the inputs of layers are rounded to fewer bits."""
        return self.activations not in ("fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Calibration set, cut from a text.

    Attributes:
        digest: SHA-256 of the text (None: not on this file system yet).
        samples: Number of sequences.
        sequence_length: Tokens per sequence.
        seed: Seed of the sampling.
        source: A text from a data set on the hub: "<repository>@<commit>/<config>/<split>/<column>". It identifies the
            text before it is staged, and `digest` is None. RANDOM_TOKENS: there is no text.
        column: Key of the passages in a file of the user.
        chat_template: Render passages with the model's chat template (a text as one message of the user); None: chats
            are rendered, texts are not.
        add_bos: Each sequence begins with the model's BOS token.
        dataset: Name of the text in the manifest.
        path: File of the text.
    """

    digest: str | None
    samples: int
    sequence_length: int
    seed: int = 1234
    source: str | None = None
    column: str = "text"
    chat_template: bool | None = None
    add_bos: bool = False
    dataset: str = unaddressed("")
    path: str | None = unaddressed(None)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that others quantized.

    A known `digest` identifies it alone; otherwise `id` and `revision` do.

    Attributes:
        id: Name on the hub, or a path.
        revision: Commit on the hub.
        digest: SHA-256 over weight, configuration and tokenizer files of a local checkpoint.
        path: Folder of the checkpoint.
    """

    id: str
    revision: str | None = None
    digest: str | None = None
    path: str | None = unaddressed(None)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Model × scheme, or a checkpoint that others quantized from the model.

    Attributes:
        model: The base checkpoint.
        scheme: How it is quantized; for `checkpoint`, as its quantization_config declares.
        calibration: Calibration set; None if the scheme needs none.
        versions: Versions of the quantization tools; empty if the scheme needs none.
        attention: Attention implementation of the calibration; None: the tool's default, or no calibration.
        checkpoint: The checkpoint, if others quantized it; None: hpcq creates it.
    """

    model: Model
    scheme: Scheme
    calibration: Calibration | None = None
    versions: Versions = ()
    attention: str | None = None
    checkpoint: Checkpoint | None = None

    @cached_property
    def address(self) -> str:
        """Content address of the variant's checkpoint."""
        return address_of("variant", self.identified())

    @property
    def is_quantized_here(self) -> bool:
        """Whether hpcq creates a quantized checkpoint, from the base checkpoint."""
        return self.scheme.is_quantized and self.checkpoint is None

    def identified(self) -> Variant:
        """Return the variant with only what identifies it.

        A digest alone identifies a model or a checkpoint. A checkpoint that others quantized does not depend on the
        base checkpoint, which may be missing.
        """
        model, checkpoint = self.model, self.checkpoint
        if model.digest or checkpoint:
            model = dataclasses.replace(model, id="", revision=None, digest=None if checkpoint else model.digest)
        if checkpoint and checkpoint.digest:
            checkpoint = dataclasses.replace(checkpoint, id="", revision=None)
        return dataclasses.replace(self, model=model, checkpoint=checkpoint)

    @property
    def id(self) -> str:
        """Stable name: model, scheme, and the first digits of the address."""
        return VARIANT_SEPARATOR.join((self.model.slug, self.scheme.slug, self.address[:DIGEST_CHARACTERS]))


@dataclass(frozen=True, kw_only=True)
class FidelityPanel:
    """Held-out text on which the next-token distributions of a variant are compared with those of its baseline.

    Attributes:
        digest: SHA-256 of the text (None: not on this file system yet, or from the hub).
        windows: Number of windows of the text.
        window_tokens: Tokens that the model reads of each window; all but the first are predicted.
        top: Number of most probable tokens whose log-probabilities are stored per position.
        repeats: How often each window is read. The baseline reads it twice, in batches of other sizes: noise floor.
        seed: Seed of the order of the passages.
        source: A text from a data set on the hub, as in `Calibration`.
        column: Key of the passages in a file of the user.
        reserved: Calibration set of the run, whose passages are left out; None: no scheme is calibrated.
        dataset: Name of the text in the manifest.
        path: File of the text.
    """

    digest: str | None
    windows: int
    window_tokens: int
    top: int = 64
    repeats: int = 1
    seed: int = 1234
    source: str | None = None
    column: str = "text"
    reserved: Calibration | None = None
    dataset: str = unaddressed("")
    path: str | None = unaddressed(None)

    @property
    def tokens(self) -> int:
        """Tokens that a model reads."""
        return self.windows * self.window_tokens * self.repeats


@dataclass(frozen=True, kw_only=True)
class TaskSize:
    """Number and length of a task's requests, without a limit; lengths are those of its first documents.

    Attributes:
        documents: Documents of all subtasks.
        requests: Requests.
        characters: Mean characters of a prompt with its answer, or of a prompt if the model writes the answer.
        shared_characters: Mean characters of the part of a prompt that the requests of a document have in common.
    """

    documents: int
    requests: int
    characters: float
    shared_characters: float


SHUFFLE_SEED = 0
"""Python's seed in lm-eval's command line: the first of `--seed 0,1234,1234,1234`."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark of lm-eval, or the fidelity panel. None means the value of the task's definition.

    Attributes:
        name: Name of the task in lm-eval.
        num_fewshot: Examples per prompt.
        limit: Number of documents to evaluate, from the first.
        items: Selected items; None: all, or the first `limit` of each subtask.
        max_gen_toks: Maximum number of generated tokens.
        fewshot_seed: Seed of the choice of examples.
        data_digest: SHA-256 over the files in `data_path`.
        data_revisions: Data sets on the hub that the definition reads, each with its commit; empty with `data_path`.
        ignores_generation_config: The checkpoint's generation_config.json has settings that are not applied, although
            earlier versions of hpcq applied them to the generated text of this task. False: it has none, or there is no
            generated text.
        panel: The fidelity panel, for the task `PANEL_TASK`; None: a benchmark.
        prompt: Settings of the prompts.
        sampling: Settings of the generated texts.
        definitions: SHA-256 over the user's definitions (`tasks.include`), if the task is one of them.
        shuffle_seed: Seed of Python's random numbers, with which the definition shuffles choices (None: it does not).
        data_path: Folder with `<split>.jsonl` files in the schema of the definition, with one such folder per subtask
            of a group (None: the data sets on the hub).
        cache: Folders of the hub's staged files (None: with `data_path`, or if nothing is staged).
        definition_folders: The user's folders with the definitions.
        definition_copies: Copies of them in the run's folder, which exist once the run is submitted.
        runs_code: Code that the model writes is run for the score, because the user permits it.
        size: Number and length of its requests, counted when it was staged (None: not counted).
    """

    name: str
    num_fewshot: int | None = None
    limit: int | None = None
    items: ItemSelection | None = None
    max_gen_toks: int | None = None
    fewshot_seed: int = 1234
    data_digest: str | None = None
    data_revisions: tuple[tuple[str, str], ...] = ()
    ignores_generation_config: bool = False
    panel: FidelityPanel | None = None
    prompt: Prompt = LM_EVAL_PROMPT
    sampling: Sampling = AS_DEFINED
    definitions: str | None = None
    shuffle_seed: int | None = None
    data_path: str | None = unaddressed(None)
    cache: HubCache | None = unaddressed(None)
    definition_folders: tuple[str, ...] = unaddressed(())
    definition_copies: tuple[str, ...] = unaddressed(())
    runs_code: bool = unaddressed(False)
    size: TaskSize | None = unaddressed(None)

    def selected(self, available: int, subtasks: int) -> int:
        """Return how many of the `available` documents of all subtasks are evaluated."""
        if self.items:
            return min(self.items.count, available)
        return available if self.limit is None else min(self.limit * subtasks, available)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Part number `index` (from 0) of `count` of a variant's requests. A chunk of requests is never split."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}of{self.count}"


@dataclass(frozen=True, kw_only=True)
class StageWork:
    """Stage what a run reads from the hub.

    Attributes:
        models: Ids of model repositories, each with its commit.
        tasks: Benchmarks whose data are on the hub.
        calibration: Calibration text, if it is on the hub.
        panel: Text of the fidelity panel, if it is on the hub.
        refs: Kind, id, commit and name of each branch or tag, which the cache remembers for use without the hub.
        cache: Folders to stage to.
        mirror: Folder that replaces the hub; None: there is none.
        segments_path: Folder of the unit in the run's folder, for its completion marker.
    """

    models: tuple[tuple[str, str], ...] = ()
    tasks: tuple[Task, ...] = ()
    calibration: Calibration | None = None
    panel: FidelityPanel | None = None
    refs: tuple[tuple[RepoKind, str, str, str], ...] = unaddressed(())
    cache: HubCache = unaddressed()
    mirror: str | None = unaddressed(None)
    segments_path: str = unaddressed()

    kind: Literal[UnitKind.STAGE] = UnitKind.STAGE

    @property
    def address(self) -> str:
        """Content address of what is staged."""
        return address_of("stage", self)


@dataclass(frozen=True, kw_only=True)
class QuantizeWork:
    """Create the checkpoint of `variant` at `checkpoint_path`, a folder that exists only once it is complete.

    Attributes:
        variant: Model and scheme.
        checkpoint_path: The folder.
        device: auto, cpu or cuda.
        max_fallback_share: Largest share of layers that may be quantized by a simpler method than the scheme's. It
            decides whether there is a checkpoint, not what is in it.
    """

    variant: Variant
    checkpoint_path: str
    device: str = unaddressed("auto")
    max_fallback_share: float = unaddressed(0.01)

    kind: Literal[UnitKind.QUANTIZE] = UnitKind.QUANTIZE


@dataclass(frozen=True, kw_only=True)
class Offload:
    """Placement of weights that do not fit into the GPUs' memory.

    Attributes:
        to: none, cpu (host memory), or disk (host memory first, then the node's local disk).
        gpu_gib: Maximum GiB of weights per GPU, in their order; empty: all memory that computing does not need.
        host_gib: Maximum GiB of weights in host memory; None: all memory that computing does not need.
    """

    to: Literal["none", "cpu", "disk"] = "none"
    gpu_gib: tuple[float, ...] = ()
    host_gib: float | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateWork:
    """Answer the requests of one shard of `tasks` with `variant`.

    Attributes:
        variant: Model and scheme.
        tasks: Benchmarks.
        backend: Name of the backend.
        dtype: Data type in which the backend computes.
        versions: Versions of the evaluation tools.
        seed: Seed of the backend.
        options: Settings of the backend that can change a result.
        checkpoint_path: Folder of the checkpoint.
        segments_path: Folder to which the unit commits its segments.
        shard: Part of the requests that this unit answers.
        batch_size: Requests per batch, for requests that share no prefix. In 16 bits, generated texts depend on it, as
            on everything that changes the shape of a computation (`VARIES`, docs/trust.md).
        flush_interval_s: Seconds between segments.
        device: auto, cpu or cuda.
        synthetic_options: Settings of the synthetic backend.
        engine_options: Settings of the backend that change at most the last bits of a result.
        batch_share: Fraction of the usual batch; less than 1 after an attempt that ran out of memory.
        node_context: Context of this node, if the unit spans several.
        offload: Placement of weights, for accelerate.
    """

    variant: Variant
    tasks: tuple[Task, ...]
    backend: str
    dtype: str
    versions: Versions = ()
    seed: int = 1234
    options: tuple[tuple[str, str | int | float | bool], ...] = ()
    checkpoint_path: str = unaddressed()
    segments_path: str = unaddressed()
    shard: Shard = unaddressed(Shard())
    batch_size: int = unaddressed(1)
    flush_interval_s: float = unaddressed(30.0)
    device: str = unaddressed("auto")
    synthetic_options: tuple[tuple[str, float], ...] = unaddressed(())
    engine_options: tuple[tuple[str, str | int | float | bool], ...] = unaddressed(())
    batch_share: float = unaddressed(1.0)
    node_context: NodeContext | None = unaddressed(None)
    offload: Offload = unaddressed(Offload())

    kind: Literal[UnitKind.EVALUATE] = UnitKind.EVALUATE

    def task_address(self, task: Task) -> str:
        """Return the content address of the responses to `task`, which is stored with its rows."""
        return address_of("responses", dataclasses.replace(self, tasks=(task,), variant=self.variant.identified()))

    @cached_property
    def address(self) -> str:
        """Content address of the responses of all shards of this work."""
        return address_of("evaluate", dataclasses.replace(self, variant=self.variant.identified()))

    @property
    def revision(self) -> str:
        """Commit, branch or tag of the checkpoint, if `checkpoint_path` is an id on the hub."""
        return (self.variant.checkpoint or self.variant.model).revision or "main"

    @property
    def is_synthetic(self) -> bool:
        """Whether the responses come from the synthetic backend; such responses are never reported as scores."""
        return self.backend == SYNTHETIC

    @property
    def shares_prefixes(self) -> bool:
        """Whether a prefix that requests have in common is computed once."""
        return not self.is_synthetic and bool(dict(self.options).get("prefix_sharing", True))


@dataclass(frozen=True, kw_only=True)
class MergeWork:
    """Merge all segments of a run, score them, and write `results_path`. `evaluations` are unsharded (shard 0 of 1)."""

    run: str
    evaluations: tuple[EvaluateWork, ...]
    segments_path: str
    results_path: str

    kind: Literal[UnitKind.MERGE] = UnitKind.MERGE


Work = StageWork | QuantizeWork | EvaluateWork | MergeWork
