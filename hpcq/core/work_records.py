"""Records of work: what a unit does, on which model, with which scheme and tasks.

Workers receive one of the `*Work` records; the planner builds them. Content addresses are made of the field names and
values of these records (`hpcq.core.addressing`): renaming an addressed field changes every address.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Literal

from hpcq.core.addressing import DIGEST_CHARACTERS, VARIANT_SEPARATOR, address_of, slug, unaddressed
from hpcq.core.node_context import NodeContext

SYNTHETIC = "synthetic"
"""Name of the backend, the tool and the method of a rehearsal."""

UNQUANTIZED = "none"
"""Name of the tool and the method of an unmodified base checkpoint."""

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
    """State of a unit. The store wins over Slurm: a unit whose work is committed is DONE, even if it is queued."""

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


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How to quantize.

    Attributes:
        name: Name in the manifest.
        tool: Quantization tool; 'none' for an unmodified base checkpoint.
        method: none, rtn (round to nearest), gptq, awq, smoothquant (smoothing, then gptq), synthetic, or a plugin's.
        weights: Data type of the weights: fp32, bf16, fp16, fp8_e4m3, int8 or int4.
        activations: Data type of the activations, as for `weights`.
        granularity: Granularity of the weights' scales: tensor, channel or group (of `group_size` inputs).
        group_size: Inputs per group.
        symmetric: Quantize the weights symmetrically.
        dynamic: Compute activation scales at run time, per token; False: once, from the calibration set.
        damping: GPTQ: fraction of the mean diagonal that is added to the Hessian.
        activation_order: GPTQ: quantize columns in the order of decreasing activation.
        smoothing_strength: SmoothQuant's migration strength (alpha).
        ignore: Modules that stay unquantized.
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
    ignore: tuple[str, ...] = ("lm_head",)
    needs_calibration: bool = unaddressed(False)

    @property
    def is_quantized(self) -> bool:
        """False for an unmodified base checkpoint."""
        return self.tool != UNQUANTIZED


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Calibration set, cut from a text.

    Attributes:
        digest: SHA-256 of the text (None: not on this file system yet).
        samples: Number of sequences.
        sequence_length: Tokens per sequence.
        seed: Seed of the sampling.
        dataset: Name of the text in the manifest.
        path: File of the text.
    """

    digest: str | None
    samples: int
    sequence_length: int
    seed: int = 1234
    dataset: str = unaddressed("")
    path: str | None = unaddressed(None)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Model × scheme. `calibration` and `versions` (of the quantization tools) are empty if the scheme needs none."""

    model: Model
    scheme: Scheme
    calibration: Calibration | None = None
    versions: Versions = ()

    @cached_property
    def address(self) -> str:
        """Content address of the variant's checkpoint."""
        model = dataclasses.replace(self.model, id="", revision=None) if self.model.digest else self.model
        return address_of("variant", dataclasses.replace(self, model=model))

    @property
    def id(self) -> str:
        """Stable name: model, scheme, and the first digits of the address."""
        return VARIANT_SEPARATOR.join((self.model.slug, slug(self.scheme.name), self.address[:DIGEST_CHARACTERS]))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark of lm-eval. None means the value of the task's definition.

    Attributes:
        name: Name of the task in lm-eval.
        num_fewshot: Examples per prompt.
        limit: Number of documents to evaluate, from the first.
        max_gen_toks: Maximum number of generated tokens.
        fewshot_seed: Seed of the choice of examples.
        data_digest: SHA-256 over the files in `data_path`.
        data_path: Folder with `<split>.jsonl` files in the schema of the definition (None: the definition's data set on
            the hub).
    """

    name: str
    num_fewshot: int | None = None
    limit: int | None = None
    max_gen_toks: int | None = None
    fewshot_seed: int = 1234
    data_digest: str | None = None
    data_path: str | None = unaddressed(None)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Part number `index` (from 0) of `count` of a variant's requests. A chunk of requests is never split."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}of{self.count}"


@dataclass(frozen=True, kw_only=True)
class QuantizeWork:
    """Create the checkpoint of `variant` at `checkpoint_path`, a folder that exists only once it is complete."""

    variant: Variant
    checkpoint_path: str
    device: str = unaddressed("auto")

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
        batch_size: Requests per batch, for requests that share no prefix.
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
        return address_of("responses", dataclasses.replace(self, tasks=(task,), variant=self._identified()))

    @cached_property
    def address(self) -> str:
        """Content address of the responses of all shards of this work."""
        return address_of("evaluate", dataclasses.replace(self, variant=self._identified()))

    @property
    def is_synthetic(self) -> bool:
        """Whether the responses come from the synthetic backend; such responses are never reported as scores."""
        return self.backend == SYNTHETIC

    @property
    def shares_prefixes(self) -> bool:
        """Whether a prefix that requests have in common is computed once."""
        return not self.is_synthetic and bool(dict(self.options).get("prefix_sharing", True))

    def _identified(self) -> Variant:
        model = self.variant.model
        return dataclasses.replace(
            self.variant, model=dataclasses.replace(model, id="", revision=None) if model.digest else model
        )


@dataclass(frozen=True, kw_only=True)
class MergeWork:
    """Merge all segments of a run, score them, and write `results_path`. `evaluations` are unsharded (shard 0 of 1)."""

    run: str
    evaluations: tuple[EvaluateWork, ...]
    segments_path: str
    results_path: str

    kind: Literal[UnitKind.MERGE] = UnitKind.MERGE


Work = QuantizeWork | EvaluateWork | MergeWork
