"""Performance constants of the cost model, each with its source or marked as an assumption.

Attempts of a run correct the assumptions (hpcq/plan/cost/calibration.py). Constants of backends and quantizers are in
hpcq/catalog/tools.toml, those of GPUs in hpcq/catalog/gpus.toml.
"""

from __future__ import annotations

from typing import Final

DOWNLOAD_BYTES_PER_S: Final = 100e6
"""Rate at which a node downloads from the hub. An assumption."""

READ_GB_PER_S: Final = 0.37
"""Read rate of one node from a shared file system, if the profile has none. One reported measurement: vLLM read 894 GiB
from a network file system in 43 minutes."""

WEIGHT_ONLY_EFFICIENCY: Final = 0.8
"""Further factor where weights are dequantized to 16 bits first (Marlin, Machete; large batches). An assumption."""

FLOAT32_RATIO: Final = 1 / 15
"""FLOP/s in float32 without tensor cores over dense BF16: H100 67 of 989, A100 19.5 of 312 (NVIDIA's data sheets)."""

BANDWIDTH_EFFICIENCY: Final = 0.7
"""Share of a GPU's memory bandwidth that decoding reaches. An assumption."""

PIPELINE_EFFICIENCY: Final = 0.85
"""Share of the time in which pipeline stages are busy, with many requests in flight. An assumption."""

LINK_EFFICIENCY: Final = 0.6
"""Share of a link's bandwidth in one direction that an all-reduce reaches. An assumption."""

MAX_NUM_SEQS: Final = 256
"""Sequences that vLLM 0.32 schedules together by default on most GPUs (engine/arg_utils.py, max_num_seqs)."""

CPU_GFLOPS: Final = {"float32": 28.0, "bfloat16": 5.0, "float16": 5.0}
"""Per core. Measured with torch 2.13 on a server core with AVX2 and without AVX-512; float16 is assumed equal to
bfloat16."""

CPU_READ_GB_PER_S: Final = 8.0
"""Read rate of weights from memory while a CPU generates. Measured: 135 M parameters in float32, 12 to 15 tokens/s."""

GPTQ_COLUMN_S: Final = 0.0005
"""Overhead per column that GPTQ rounds, besides its arithmetic. Measured on a CPU: SmolLM2-135M, 16 sequences of 128
tokens, 126 s, of which 76 s for 150,000 columns. Assumed for GPUs as well, where launching kernels takes as long."""

AWQ_TRIALS: Final = 20
"""Scaling ratios that AWQ tries per group of layers (llmcompressor 0.14, n_grid)."""

QUANTIZE_EFFICIENCY: Final = 0.3
"""Share of a GPU's dense FLOP/s that calibration reaches. An assumption."""

HOST_LINK_GB_PER_S: Final = 16.0
"""Transfer rate between host memory and GPU. An assumption (half of PCIe 4 x16)."""

DISK_READ_GB_PER_S: Final = 2.0
"""Read rate of weights from a node's local disk. An assumption (half of an NVMe disk's; a SATA disk is slower)."""

OFFLOADED_PASS_TOKENS: Final = {"gpu": 4096, "cpu": 512}
"""Tokens per forward pass; each pass transfers all offloaded weights. Assumptions: half of the maximum
(hpcq/evaluate/backends/transformers/prefix_scoring/scorer.py)."""

WORK_SLACK: Final = 1.5
"""Factor on the estimate of computing, in a time limit."""

LOADING_SLACK: Final = 3.0
"""Factor on the estimate of starting and loading, in a time limit. It is larger because the speed of a shared file
system under load is known least, and an attempt that is killed before its first answer has no result."""

SLACK_MINUTES: Final = 10
"""Minutes added to a time limit."""

LIMIT_STEP_MINUTES: Final = 5
"""Time limits are multiples of this."""

MERGE_S: Final = 5.0
"""Seconds of a merge without responses. An assumption."""

MERGE_RESPONSE_S: Final = 35e-6
"""Seconds of a merge per response. Measured: reading takes 7 microseconds on a server core (benchmarks/store.py).
Assumed: checking, scoring and writing take four times as long."""

MIN_RESPONSE_BYTES: Final = 400
"""Bytes per response on disk without its text, in a segment or results.h5, with key and provenance. An assumption."""

PANEL_POSITION_BYTES: Final = 335
"""Bytes per position of the fidelity panel on disk: mean of 376 in a segment and 294 in results.h5, measured on
SmolLM2-135M (vocabulary of 49,152 tokens)."""

TEXT_BYTES_PER_TOKEN: Final = 4
"""Bytes of generated text per token. An assumption; it holds for English."""

MIN_LIMIT_MINUTES: Final = 15
"""submitit takes the warning signal before a limit of 10 minutes or less for a timeout."""
