"""How fast things go: every constant that seconds are reckoned with, each with its source, or called an assumption.

Knows no model and no plan. An assumption is put right by what a run's own attempts took (hpcq/plan/cost/calibration.py).
"""

from __future__ import annotations

from typing import Final

READ_GB_PER_S: Final = 0.37
"""Of a node from a shared file system where the profile says nothing. Reported by others: 894 GiB in 43 minutes, for
vLLM from a network file system."""

START_S: Final = {"vllm": 90.0, "accelerate": 30.0, "llmcompressor": 30.0}
"""From the start of a process to the first byte of weights, and from the last one to the first answer: imports, tasks,
processes, compiled graphs. Importing vLLM took 14 to 40 s, its engine 8 to 85 s, on two CPU cores; the rest assumed."""

PREFILL_SHARE: Final = {"vllm": 0.4, "accelerate": 0.2}
"""Of a GPU's dense operations a second that prompts reach. Assumptions; calibrated by attempts."""

WEIGHT_ONLY_SHARE: Final = 0.8
"""Of that, where weights are brought to 16 bits first (Marlin, Machete; with many tokens at once). An assumption."""

FLOAT32_SHARE: Final = 1 / 15
"""Of a GPU's dense BF16, in float32 without tensor cores: H100 67 of 989, A100 19.5 of 312 (NVIDIA's data sheets)."""

READ_SHARE: Final = 0.7
"""Of a GPU's memory bandwidth that decoding reaches. An assumption."""

PIPELINE_SHARE: Final = 0.85
"""Of the time in which the stages of a pipeline have work, with many requests at once. An assumption."""

LINK_SHARE: Final = 0.6
"""Of a link's bytes a second one way that an all-reduce reaches. An assumption."""

HOP_S: Final = {"NVLink": 15e-6, "PCIe": 40e-6}
"""Of an all-reduce of a few tokens, however few they are. Assumptions."""

LAYER_S: Final = {"vllm": 0.0, "accelerate": 0.0005}
"""Of Python for one layer and one step of generation; vLLM's graphs spare it. An assumption."""

SEQUENCES_AT_MOST: Final = 256
"""That vLLM 0.32 computes at once by default, on most GPUs (engine/arg_utils.py, max_num_seqs)."""

CPU_GFLOPS: Final = {"float32": 28.0, "bfloat16": 5.0, "float16": 5.0}
"""Of a core: measured with torch 2.13 on a server's core with AVX2 and without AVX-512 (float16: taken as bfloat16)."""

CPU_READ_GB_PER_S: Final = 8.0
"""Of weights while a CPU generates. Measured: 135 M parameters in float32, 12 to 15 tokens a second."""

COLUMN_S: Final = 0.0005
"""Of a column that GPTQ rounds, beside its arithmetic. Measured on a CPU: SmolLM2-135M, 16 sequences of 128 tokens,
126 s, of which 76 s for 150,000 columns; taken for GPUs, too, where launching kernels takes as long."""

AWQ_TRIALS: Final = 20
"""Ratios that AWQ tries for each group of layers (llmcompressor 0.14, n_grid)."""

QUANTIZE_SHARE: Final = 0.3
"""Of a GPU's dense operations a second that calibration reaches. An assumption."""

HOST_LINK_GB_PER_S: Final = 16.0
"""Of blocks on their way from the host's memory to the GPU and back. An assumption (PCIe 4 x16, half of it)."""

DISK_READ_GB_PER_S: Final = 2.0
"""Of weights from a node's own disk. An assumption (half of an NVMe disk's; less from SATA)."""

OFFLOADED_PASS_TOKENS: Final = {"gpu": 4096, "cpu": 512}
"""That one pass computes, for which all offloaded weights are brought. Assumptions: half of what a pass may have
(hpcq/evaluate/backends/transformers/prefix_scoring/scorer.py)."""

SLACK: Final = 1.5
"""Times the estimate of what is computed, in a time limit."""

LOADING_SLACK: Final = 3.0
"""Times the estimate of starting and loading: how fast a file system is when many read is known least, and an attempt
that ends before its first answer was for nothing."""

SLACK_MINUTES: Final = 10
"""More, in a time limit."""

LIMIT_STEP_MINUTES: Final = 5
"""Time limits are multiples of it."""

MERGE_S: Final = 5.0
"""Of a merge, beside its responses. An assumption."""

MERGED_RESPONSE_S: Final = 35e-6
"""Of each response. Reading one took 7 microseconds on a server's core (benchmarks/store.py); that checking, scoring
and writing take four times as long is an assumption."""

SMALLEST_RESPONSE_BYTES: Final = 400
"""Of a response on disk, in a segment or in results.h5, its request's key and provenance included. An assumption."""

TEXT_BYTES_PER_TOKEN: Final = 4
"""Of generated text. An assumption; English has about as many."""

LEAST_LIMIT_MINUTES: Final = 15
"""submitit takes the warning before any limit of 10 minutes or less for a timeout."""
