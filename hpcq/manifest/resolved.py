"""Resolved manifest, the input of the planner: names replaced by records, defaults filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from hpcq.catalog.generation_settings import GenerationSettings
from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.tools import quantizers
from hpcq.core.frozen import dataclass
from hpcq.core.paths import RunLayout
from hpcq.core.work_records import (
    Calibration,
    Checkpoint,
    FidelityPanel,
    Model,
    Scheme,
    Task,
    Variant,
    Versions,
    default_compute_dtype,
)
from hpcq.manifest.context import Context
from hpcq.manifest.profiles import Profile
from hpcq.manifest.schema import Manifest


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Settings of the evaluation; see `EvaluateSection` for the keys of the manifest.

    Attributes:
        environment: name of the Python environment.
        dtype: auto, float32, bfloat16 or float16.
        max_length: maximum tokens of prompt and answer; None is the model's context length.
        engine: engine arguments; empty for backends without them.
        synthetic_options: request_seconds, load_seconds and memory_gib of a rehearsal; empty for real backends.
        emulate: the backend whose placement a rehearsal uses; None if none is emulated.
        offload: where a backend that can offload may put weights that do not fit on the GPUs.
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
    add_eos: bool = True
    max_length: int | None = None
    engine: tuple[tuple[str, int | float | bool], ...] = ()
    synthetic_options: tuple[tuple[str, float], ...] = ()
    emulate: str | None = None
    offload: Literal["none", "cpu", "disk"] = "none"

    @property
    def placement_backend(self) -> str:
        """The backend whose requirements decide the placement: in a rehearsal, the emulated one."""
        return self.emulate or self.backend

    def dtype_for(self, scheme: Scheme) -> str:
        """Return the data type for computing `scheme`. 'auto': that of its weights, bfloat16 if quantized."""
        if self.dtype != "auto":
            return self.dtype
        return default_compute_dtype(scheme.weights)


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """Settings of the quantization.

    Attributes:
        environment: name of the Python environment of every tool; None: each tool has its own.
        device: auto, cpu or cuda.
        max_fallback_share: Largest share of layers that may be quantized by a simpler method than the scheme's.
    """

    environment: str | None
    device: str
    max_fallback_share: float

    def environment_for(self, tool: str) -> str:
        """Return the name of the Python environment in which `tool` runs."""
        return self.environment or quantizers()[tool].environment


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Settings of the report.

    Attributes:
        compare: Names of the published studies to compare with.
        margin_points: Largest difference, in percentage points, that counts as equivalent.
    """

    compare: tuple[str, ...] = ()
    margin_points: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ResolvedManifest:
    """A manifest with every name replaced by the record or path that it refers to.

    Attributes:
        pairs: every model with each of its schemes, unquantized schemes first.
        foreign: checkpoints that others quantized, as variants of their models.
        stored_bytes: bytes of their tensors, by checkpoint; without those that are unknown.
        generation: generation settings by path of a checkpoint's folder; without folders that do not exist.
        architectures: names in config.json by model; without models whose configuration is unknown.
        shapes: sizes by model; None if unknown.
        calibration: None if no scheme needs it.
        panel: the fidelity panel, as quantized variants read it; None: there is none.
        fallback: settings for variants that `evaluate` does not support; None if there is no fallback.
        shape_errors: reasons why a model's shape is unknown, by model.
        notes: caveats to show with the scores.
        missing: one sentence per input that is not on this file system yet. A plan does not need them, a run does.
        absent: those of `missing` that are not staged: the user has to put them there.
        locked_versions: tool versions by Python environment, from a lock file; empty for other manifests.
        context: the manifest, and what its names refer to.
    """

    name: str
    layout: RunLayout
    profile: Profile
    pairs: tuple[tuple[Model, Scheme], ...]
    shapes: Mapping[Model, ModelShape | None]
    calibration: Calibration | None
    tasks: tuple[Task, ...]
    evaluate: EvaluateSettings
    quantize: QuantizeSettings
    report: ReportSettings
    foreign: tuple[Variant, ...] = ()
    stored_bytes: Mapping[Checkpoint, int] = field(default_factory=dict)
    architectures: Mapping[Model, tuple[str, ...]] = field(default_factory=dict)
    generation: Mapping[str, GenerationSettings] = field(default_factory=dict)
    panel: FidelityPanel | None = None
    fallback: EvaluateSettings | None = None
    shape_errors: Mapping[Model, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    locked_versions: Mapping[str, Versions] = field(default_factory=dict)
    context: Context = field(compare=False, repr=False)

    @property
    def manifest(self) -> Manifest:
        """The manifest as loaded."""
        return self.context.manifest
