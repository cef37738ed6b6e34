"""What a manifest comes to: the records that the planner works from. Holds no logic, reads no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hpcq.catalog.models import ModelShape
from hpcq.core.paths import RunLayout
from hpcq.core.work import Calibration, Model, Scheme, Task, Versions
from hpcq.manifest.profiles import Profile
from hpcq.manifest.schema import Manifest

_COMPUTE_DTYPES = {"fp32": "float32", "fp16": "float16"}


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """How the variants are evaluated.

    environment: the name of the Python environment. dtype: auto, float32, bfloat16 or float16. max_length: tokens of
    prompt and answer (None: the model's own). engine: what is set of vLLM's engine; empty for other back ends. pace:
    request_seconds, load_seconds and memory_gib of a rehearsal; empty for real back ends. stands_for: the back end that
    a rehearsal is placed as; None: none in particular. offload: where accelerate may keep weights that GPUs have no
    room for: none, cpu or disk.
    """

    backend: str
    environment: str
    dtype: str
    batch_size: int
    shards: int | Literal["auto"]
    flush_interval_s: float
    device: str
    seed: int
    prefix_sharing: bool = True
    max_length: int | None = None
    engine: tuple[tuple[str, int | float | bool], ...] = ()
    pace: tuple[tuple[str, float], ...] = ()
    stands_for: str | None = None
    offload: Literal["none", "cpu", "disk"] = "none"

    @property
    def placed_as(self) -> str:
        """The back end whose needs a place must meet: in a rehearsal, the one that is rehearsed."""
        return self.stands_for or self.backend

    def dtype_for(self, scheme: Scheme) -> str:
        """What to compute `scheme` in: 'auto' is the type of the unquantized weights, bfloat16 for quantized ones."""
        if self.dtype != "auto":
            return self.dtype
        return _COMPUTE_DTYPES.get(scheme.weights, "bfloat16")


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """How the variants are quantized: in which Python environment, on which device (auto, cpu, cuda)."""

    environment: str
    device: str


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What the report compares the scores with: names of published studies."""

    compare: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A manifest in which every name has become what it names.

    pairs: every model with each of its schemes, unquantized first. shapes: by model id; None where nothing tells.
    calibration: None where no scheme needs it. fallback: how to evaluate what `evaluate` cannot, where that may be.
    unsized: why a model's shape is not known, by its id. notes: caveats to
    show beside the scores. missing: one sentence for each thing that is not on this file system yet; a plan can be made
    without it, a run cannot. locked_versions: by environment, the tools' versions that a lock file recorded; empty for
    a manifest that is none.
    """

    name: str
    layout: RunLayout
    profile: Profile
    pairs: tuple[tuple[Model, Scheme], ...]
    shapes: Mapping[str, ModelShape | None]
    calibration: Calibration | None
    tasks: tuple[Task, ...]
    evaluate: EvaluateSettings
    quantize: QuantizeSettings
    report: ReportSettings
    fallback: EvaluateSettings | None = None
    unsized: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    locked_versions: Mapping[str, Versions] = field(default_factory=dict)
    manifest: Manifest = field(compare=False, repr=False)
