"""Seconds of planning 1,000 and 10,000 units, to show that planning is linear."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from hpcq.manifest import load, resolve
from hpcq.plan.arrays import make_arrays
from hpcq.plan.plan_json import plan_document
from hpcq.plan.planner import make_plan
from hpcq.plan.schedule.simulator import simulate_estimates

HEAD = """
[run]
name = "large"
[cluster]
profile = "clusters/paper.toml"
[schemes]
use = ["bf16", "fp8", "gptq-w4a16", "gptq-w8a16"]
[tasks]
suites = ["openllm-v1", "openllm-v2"]
[evaluate]
backend = "synthetic"
shards = 25
"""
CONFIG = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}


def write_manifest(models: int, folder: Path) -> Path:
    """Write a manifest with `models` local models of 4 schemes × 25 shards: about 103 units per model."""
    text = HEAD
    for index in range(models):
        checkpoint = folder / f"model-{index}"
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 16 + index}))
        text += f'[[models]]\nid = "model-{index}"\npath = "{checkpoint}"\n'
    path = folder / f"{models}.toml"
    path.write_text(text)
    return path


def seconds_to_plan(path: Path) -> tuple[int, float]:
    """Return the number of units, and the seconds from the file to the plan's document."""
    start = time.perf_counter()
    resolved = resolve(load(path))
    plan = make_plan(resolved)
    arrays = make_arrays(plan.units, resolved.profile)
    document = plan_document(plan, arrays, {}, simulate_estimates(arrays, resolved.profile))
    return len(document["units"]), time.perf_counter() - start


def main() -> None:
    """Measure both sizes in turns, three times, and compare the fastest measurement of each."""
    with tempfile.TemporaryDirectory() as name:
        small, large = (write_manifest(models, Path(name)) for models in (10, 100))
        times: dict[int, list[float]] = {}
        for _ in range(3):
            for path in (small, large):
                units, seconds = seconds_to_plan(path)
                times.setdefault(units, []).append(seconds)
    (few, few_seconds), (many, many_seconds) = ((units, min(found)) for units, found in times.items())
    print(f"{few} units: {few_seconds:.2f} s; {many} units: {many_seconds:.2f} s")
    growth = many_seconds / few_seconds / (many / few)
    print(f"seconds per unit, {many} units relative to {few}: {growth:.2f} (1.00 is linear)")


if __name__ == "__main__":
    main()
