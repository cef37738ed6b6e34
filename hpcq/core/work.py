"""The vocabulary that every room shares: what a unit of work is made of, and its content address.

Knows nothing of TOML, Slurm, HDF5 or any model library. A worker receives one of the `*Work` records and needs
nothing else; the planner makes them.

A content address is the SHA-256 of everything that can change a result and of nothing that cannot. Which is which is
said where a field is declared: `unaddressed()` marks a field that cannot (a path, a label, a batch size, a shard).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal

from hpcq.core.node_rank import Place

ADDRESS_VERSION = 1
DIGEST_CHARACTERS = 12
SLUG_CHARACTERS = 80
"""Of a name, so that a unit's id with two of them fits into the 255 bytes that a file's name may have."""

Versions = tuple[tuple[str, str], ...]
"""Distribution names and exact versions of the tools that can change a result, sorted by name."""


def unaddressed(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that cannot change a result, and so is left out of the content address."""
    return field(default=default, metadata={"addressed": False})


def canonical(value: object) -> Any:
    """`value` as plain JSON types, without the fields that are left out of the address; keys are sorted by the encoder.

    A field that holds its default is left out too, so that adding an optional field later keeps old addresses.

    Raises:
        TypeError: a value that has no canonical form.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            item.name: canonical(getattr(value, item.name))
            for item in dataclasses.fields(value)
            if item.metadata.get("addressed", True) and getattr(value, item.name) != item.default
        }
    if isinstance(value, dict):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{type(value).__name__} has no canonical form for a content address")


def address_of(*parts: object) -> str:
    """The content address of `parts`: 64 hexadecimal digits."""
    text = json.dumps([ADDRESS_VERSION, *map(canonical, parts)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def slug(text: str) -> str:
    """`text` as a name fit for a folder, a job and an HDF5 group: lower case, digits, '.', '-' and '_'."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower())[:SLUG_CHARACTERS].strip("-.") or "unnamed"


class Kind(StrEnum):
    """What a unit does."""

    STAGE = "stage"
    QUANTIZE = "quantize"
    EVALUATE = "evaluate"
    JUDGE = "judge"
    MERGE = "merge"


class State(StrEnum):
    """Where a unit stands. The store wins over Slurm: what is committed is DONE, whatever the queue says."""

    WAITING = "waiting"
    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A base checkpoint.

    `digest` is the SHA-256 over its weight, configuration and tokenizer files (None: not on this file system yet);
    where it is known it identifies the model alone, else `id` and `revision` do.
    """

    id: str
    revision: str | None = None
    digest: str | None = None
    trust_remote_code: bool = False
    path: str | None = unaddressed(None)
    notes: tuple[str, ...] = unaddressed(())

    @property
    def slug(self) -> str:
        """The last part of the id: 'huggingfacetb/SmolLM2-135M' is 'smollm2-135m'."""
        return slug(self.id.rstrip("/").rsplit("/", 1)[-1])


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How to quantize. `tool` 'none' is a base checkpoint as it is.

    method: none · rtn (round to nearest) · gptq · awq · smoothquant (smoothing, then gptq) · synthetic.
    weights, activations: fp32, bf16, fp16, fp8_e4m3, int8, int4.
    granularity of the weights' scales: tensor, channel or group (of `group_size` inputs).
    dynamic: activation scales are computed at run time, a token at a time; False: once, from the calibration set.
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
        """False for a base checkpoint as it is."""
        return self.tool != "none"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The calibration set, cut from the text whose SHA-256 is `digest`.

    samples: sequences of `sequence_length` tokens each.
    """

    digest: str | None
    samples: int
    sequence_length: int
    seed: int = 1234
    dataset: str = unaddressed("")
    path: str | None = unaddressed(None)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Model × scheme. `calibration` and `versions` (of the quantizing tools) are empty where the scheme needs none."""

    model: Model
    scheme: Scheme
    calibration: Calibration | None = None
    versions: Versions = ()

    @cached_property
    def address(self) -> str:
        """Content address of the checkpoint that this variant is."""
        model = dataclasses.replace(self.model, id="", revision=None) if self.model.digest else self.model
        return address_of("variant", dataclasses.replace(self, model=model))

    @property
    def id(self) -> str:
        """Stable name: model, scheme, and the start of the address."""
        return f"{self.model.slug}--{slug(self.scheme.name)}--{self.address[:DIGEST_CHARACTERS]}"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark of lm-eval's, by its own definition; None means as the definition says.

    limit: the first so many documents. data_path: a folder with `<split>.jsonl` files in the schema which the
    definition expects (None: the definition's own place on the hub), `data_digest` the SHA-256 over them. max_gen_toks:
    generated tokens at most.
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
    """A slice of a variant's pieces (what is computed whole): number `index` of `count`."""

    index: int = 0
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class QuantizeWork:
    """Make `variant`'s checkpoint at `checkpoint_path`, a folder that exists only when whole."""

    variant: Variant
    checkpoint_path: str
    device: str = unaddressed("auto")

    kind: Literal[Kind.QUANTIZE] = Kind.QUANTIZE


@dataclass(frozen=True, kw_only=True)
class Offload:
    """Where weights may lie that the GPUs have no room for.

    to: none, cpu (the host's memory), or disk (that first, then the node's own disk). gpu_gib: of weights on each GPU
    in turn, at most; empty: what there is, less what computing takes. host_gib: in the host's memory, likewise.
    """

    to: Literal["none", "cpu", "disk"] = "none"
    gpu_gib: tuple[float, ...] = ()
    host_gib: float | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateWork:
    """Answer `shard` of the requests that `tasks` make of `variant`.

    backend: accelerate, vllm, synthetic. dtype: what the back end computes in. `versions`: of the evaluating tools.
    batch_size: requests that are computed together where they share no prefix. flush_interval_s: seconds between
    segments. device: auto, cpu or cuda. `options` are the back end's own settings that can change a result, `engine`
    those that change no more than its last bits. batch_share: how much of what is usual is to be computed at once; less
    than one after an attempt that ran out of memory. offload: of accelerate's weights. place: of this process, where
    the unit spans several nodes.
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
    pace: tuple[tuple[str, float], ...] = unaddressed(())
    engine: tuple[tuple[str, str | int | float | bool], ...] = unaddressed(())
    batch_share: float = unaddressed(1.0)
    place: Place | None = unaddressed(None)
    offload: Offload = unaddressed(Offload())

    kind: Literal[Kind.EVALUATE] = Kind.EVALUATE

    def task_address(self, task: Task) -> str:
        """Content address of the responses to `task`: what its rows in the store carry."""
        return address_of("responses", dataclasses.replace(self, tasks=(task,), variant=self._identified()))

    @cached_property
    def address(self) -> str:
        """Content address of all of this work's responses, whatever the shard."""
        return address_of("evaluate", dataclasses.replace(self, variant=self._identified()))

    @property
    def is_rehearsal(self) -> bool:
        """The synthetic back end's responses are never scores."""
        return self.backend == "synthetic"

    @property
    def shares_prefixes(self) -> bool:
        """Whether requests that begin alike are to be computed together."""
        return not self.is_rehearsal and bool(dict(self.options).get("prefix_sharing", True))

    def _identified(self) -> Variant:
        model = self.variant.model
        return dataclasses.replace(
            self.variant, model=dataclasses.replace(model, id="", revision=None) if model.digest else model
        )


@dataclass(frozen=True, kw_only=True)
class MergeWork:
    """Merge every segment of a run, score it, and write `results_path`. `evaluations` are whole (shard 0 of 1)."""

    run: str
    evaluations: tuple[EvaluateWork, ...]
    segments_path: str
    results_path: str

    kind: Literal[Kind.MERGE] = Kind.MERGE


Work = QuantizeWork | EvaluateWork | MergeWork
