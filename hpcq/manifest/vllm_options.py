"""The table of a manifest that sets up vLLM's engine: every key with its type, bounds and the sentence about it.

Knows the names of vLLM's engine arguments (0.32); must not know what becomes of them.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hpcq.manifest.field_types import Count, Section, refusal


class EngineSection(Section):
    """How vLLM's engine is set up; what is not given here it chooses itself. Results depend on it by rounding alone."""

    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None,
        description="GPUs that share each matrix, of one node or of several; by default all of a node that the plan "
        "gives a unit.",
    )
    pipeline_parallel_size: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None, description="Groups of GPUs that share the layers; by default one a node."
    )
    max_num_seqs: Count | None = Field(None, description="Prompts and texts computed together, at most.")
    max_num_batched_tokens: Count | None = Field(None, description="Tokens computed in one pass, at most.")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Share of a GPU's memory that vLLM takes; it must be free at the start."
    )
    kv_cache_gib: Annotated[float, Field(gt=0, le=100_000)] | None = Field(
        None,
        description="Memory for what is kept of prompts, GiB a GPU; by default what is left of that share, and 2 on a "
        "CPU.",
    )
    enforce_eager: bool | None = Field(
        None, description="Whether to do without CUDA graphs: starts sooner, generates more slowly."
    )
    block_size: Literal[16, 32, 64, 128, 256] | None = Field(
        None, description="Tokens that are kept or dropped together; by default 32 on a CPU, vLLM's choice on GPUs."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        tokens, rows = self.max_num_batched_tokens, self.max_num_seqs
        if tokens is not None and rows is not None and tokens < rows:
            raise refusal(f"must be max_num_seqs ({rows}) or more, not {tokens}.", "max_num_batched_tokens")
        return self
