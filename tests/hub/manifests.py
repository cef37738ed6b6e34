"""Manifests that name models, benchmarks and calibration texts by their ids on the hub only.

Requests are computed one by one, as lm-eval does: quantized activations amplify the effect of another batch. The GPUs
of the virtual nodes cannot compute.
"""

from __future__ import annotations

WHOLE = """
[run]
name = "hub"
[[models]]
id = "acme/tiny-llama"
[schemes]
use = ["bf16", "gptq-w4a16-g64", "fp8-dynamic"]
[quantize]
device = "cpu"
[calibration]
dataset = "acme/passages"
samples = 2
sequence_length = 128
[tasks]
use = ["arc_challenge", "winogrande", "mmlu"]
limit = 8
[tasks.options.mmlu]
limit = 1
[evaluate]
device = "cpu"
dtype = "float32"
batch_size = 1
prefix_sharing = false
"""

WITHOUT_GROUP = WHOLE.replace(', "mmlu"', "").replace("[tasks.options.mmlu]\nlimit = 1\n", "")

LIMITS = {"arc_challenge": 8, "winogrande": 8, "mmlu": 1}
"""Items per task, and per task of a group."""

SMALL = """
[run]
name = "small"
[cluster]
profile = "local"
[[models]]
id = "acme/tiny-llama"
[schemes]
use = ["bf16"]
[tasks]
use = ["arc_challenge"]
limit = 8
[evaluate]
device = "cpu"
dtype = "float32"
batch_size = 1
prefix_sharing = false
"""

MODEL_ONLY = SMALL.replace('use = ["arc_challenge"]', 'use = ["arc_challenge"]\ndata = "packages"')
"""Only the model comes from the hub."""
