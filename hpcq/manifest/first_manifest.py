"""The manifest that `hpcq init` writes: small, whole, and with the words that explain it. A text, and nothing else."""

FIRST_MANIFEST = """\
# What to find out, in one file (docs/manifest.md has every key). It runs as it is, on a laptop, from public packages:
# `hpcq stage` brings the model and the benchmark items, `hpcq plan` shows what would run, `hpcq submit` runs it.

[run]
name = "first"

[cluster]
profile = "local" # this machine; on a cluster the file that `hpcq init --from-sinfo` wrote

[[models]] # one such table a model: an id of the hub, or the path of a checkpoint's folder
id = "HuggingFaceTB/SmolLM2-135M-Instruct"

[schemes]
use = ["bf16", "fp8-dynamic"] # bf16 is the model as it is, which the others are compared with

[tasks]
use = ["arc_challenge", "winogrande"] # or suites = ["openllm-v1", "openllm-v2"]
limit = 20                            # the first items of each task alone; without it, all
data = "packages"                     # without it, from the hub

[evaluate]
backend = "accelerate" # or "vllm", on GPUs
dtype = "float32"      # for CPUs; without it, the model's own
"""
