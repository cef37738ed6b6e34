"""Schema of `[evaluate.engine]`: vLLM engine arguments (names as in vLLM 0.32)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hpcq.manifest.field_types import PositiveInt, Section, validation_error


class EngineSection(Section):
    """Engine arguments of vLLM; vLLM chooses the others. All but `linear_backend` change results by rounding only."""

    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None,
        description="GPUs that each weight matrix is split over, on one or several nodes; by default all GPUs per "
        "node that the plan assigns to a unit.",
    )
    pipeline_parallel_size: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None, description="GPU groups that the layers are split over; by default one per node."
    )
    enable_expert_parallel: bool | None = Field(
        None,
        description="Give each GPU whole experts of a mixture of experts, instead of a part of every expert; by "
        "default if the parts would be narrow or cannot be divided. Models without experts ignore it.",
    )
    max_num_seqs: PositiveInt | None = Field(None, description="Maximum sequences per batch.")
    max_num_batched_tokens: PositiveInt | None = Field(None, description="Maximum tokens per forward pass.")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Fraction of a GPU's memory that vLLM allocates; it must be free at the start."
    )
    kv_cache_gib: Annotated[float, Field(gt=0, le=100_000)] | None = Field(
        None,
        description="Size of the KV cache, GiB per GPU; by default the rest of that fraction, on a CPU 2.",
    )
    enforce_eager: bool | None = Field(None, description="Disable CUDA graphs: faster start, slower generation.")
    block_size: Literal[16, 32, 64, 128, 256] | None = Field(
        None, description="Tokens per KV cache block; by default 32 on a CPU, vLLM's choice on GPUs."
    )
    linear_backend: Literal["emulation", "triton"] | None = Field(
        None,
        description="Kernels for the schemes that need them: 'emulation' computes NVFP4 as defined on GPUs without "
        "NVFP4, slowly; 'triton' computes INT8 W8A8 on compute capability 10.0 and up. Other schemes do not change.",
    )

    @model_validator(mode="after")
    def _check_batch_limits(self) -> Self:
        tokens, sequences = self.max_num_batched_tokens, self.max_num_seqs
        if tokens is not None and sequences is not None and tokens < sequences:
            raise validation_error(
                f"must be max_num_seqs ({sequences}) or more, not {tokens}.", "max_num_batched_tokens"
            )
        return self
