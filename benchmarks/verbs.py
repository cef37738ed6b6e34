"""CPU seconds and memory of the commands for runs of 100, 1,000 and 10,000 units, to show that they are linear.

The jobs are submitted to the virtual cluster of the tests, whose partitions are down, so that all of them stay pending.
Afterwards each unit gets an attempt, a segment and a completion marker, for the merge. CPU seconds include those of
Slurm's clients. `growth` is the CPU time per additional unit between the two larger sizes, relative to that between the
two smaller ones: 1 is linear.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Mapping, Sequence
from pathlib import Path

from parts.process_use import Usage, growth, measure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hpcq.core.attempts import AttemptRecord, new_attempt, utc_now  # noqa: E402 - the tests' cluster is not installed
from hpcq.core.completion_marker import write_completion_marker  # noqa: E402
from hpcq.core.outcomes import Outcome  # noqa: E402
from hpcq.core.paths import segment_folders  # noqa: E402
from hpcq.core.work_records import EvaluateWork  # noqa: E402
from hpcq.evaluate.prefix.request_chunks import chunks_of_shard, partition  # noqa: E402
from hpcq.evaluate.request_set import build_request_set  # noqa: E402
from hpcq.launch.recovery.retry_policy import RetryPolicy  # noqa: E402
from hpcq.launch.recovery.stale_attempts import close_stale_attempts  # noqa: E402
from hpcq.run.load import LoadedRun, load_run  # noqa: E402
from hpcq.store import Response, SegmentWriter, load_index  # noqa: E402
from tests.slurm.cluster import CLASSES, VirtualCluster, missing_daemons, slurm_conf  # noqa: E402

SIZES = (100, 1_000, 10_000)
SHARDS, SCHEMES = 24, ("bf16", "fp8", "gptq-w4a16", "gptq-w8a16")
LARGE, REPEATS = 5_000, 3
"""Commands of smaller runs that can be repeated are measured several times, and the smallest CPU time counts."""
STARTS = 50
"""Number of attempts whose start is measured, for each size of the run."""

SETTINGS = {"MaxJobCount": "30000", "MaxArraySize": "1001", "MessageTimeout": "60", "MinJobAge": "300"}
MANIFEST = """
[run]
name = "large"
[schemes]
use = {schemes}
[tasks]
use = ["arc_challenge"]
limit = {shards}
[evaluate]
backend = "synthetic"
shards = {shards}
"""
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "num_hidden_layers": 4,
    "intermediate_size": 1024,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}


def write_manifest(folder: Path, units: int) -> Path:
    """Write a manifest of about `units` units."""
    models = max(1, round(units / (len(SCHEMES) * (SHARDS + 1))))
    text = MANIFEST.format(schemes=json.dumps(SCHEMES), shards=SHARDS)
    for index in range(models):
        checkpoint = folder / f"model-{index}"
        checkpoint.mkdir()
        config = {**CONFIG, "num_hidden_layers": 4 + index}
        (checkpoint / "config.json").write_text(json.dumps(config))
        text += f'[[models]]\nid = "model-{index}"\npath = "{checkpoint}"\n'
    path = folder / "manifest.toml"
    path.write_text(text)
    return path


def start_attempts(loaded: LoadedRun) -> Usage:
    """Do what the first attempts of some units do before they load a model; return the use per attempt."""
    works = [(unit.id, unit.work) for unit in loaded.plan.units if isinstance(unit.work, EvaluateWork)]
    requests = build_request_set(works[0][1].tasks, is_synthetic=True)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    for unit_id, work in works[-STARTS:]:
        close_stale_attempts(loaded.layout, unit_id, RetryPolicy(), own=None)
        new_attempt(loaded.layout.attempts, record(unit_id, Outcome.RUNNING))
        load_index(segment_folders(Path(work.segments_path).parent, work.variant), expect=requests.addresses(work))
    return Usage(
        cpu_s=(time.process_time() - cpu_s) / STARTS, wall_s=(time.perf_counter() - wall_s) / STARTS, memory_mib=0.0
    )


def record(unit_id: str, outcome: Outcome) -> AttemptRecord:
    """Return the record of an attempt."""
    end = None if outcome is Outcome.RUNNING else utc_now()
    return AttemptRecord(
        unit=unit_id, attempt=0, job_id="1", node="n", pid=1, start=utc_now(), end=end, outcome=outcome, total=4
    )


def answer_all(loaded: LoadedRun) -> None:
    """Commit the responses of all evaluations, one segment per unit."""
    for unit in loaded.plan.units:
        if unit.checkpoint is not None:
            Path(unit.checkpoint).mkdir(parents=True, exist_ok=True)
        if not isinstance(work := unit.work, EvaluateWork):
            continue
        requests = build_request_set(work.tasks, is_synthetic=True)
        chunks = partition(requests.requests, rows=work.batch_size, shares_prefixes=work.shares_prefixes)
        mine = [request for chunk in chunks_of_shard(chunks, work.shard, frozenset()) for request in chunk.requests]
        attempt = new_attempt(loaded.layout.attempts, record(unit.id, Outcome.DONE)).record
        provenance = {"unit": unit.id, "attempt_start": attempt.start}
        writer = SegmentWriter(
            Path(work.segments_path), attempt=1, addresses=requests.addresses(work), provenance=provenance
        )
        writer.add_all((request.key, Response(-1.0, is_greedy=True)) for request in mine)
        writer.flush()
        write_completion_marker(Path(work.segments_path), address=work.address, requests=len(mine), attempt=1)


def measure_run(folder: Path, units: int, profile: Path) -> tuple[int, dict[str, Usage]]:
    """Return the number of units of a run, and what each command used."""
    manifest = write_manifest(folder, units)
    options = ("-O", f"cluster.profile={profile}", "-O", "plan.confirm_above_gpu_hours=1e9")
    used: dict[str, Usage] = {}

    def measured(name: str, *arguments: str | Path, codes: Sequence[int] = (0,)) -> None:
        runs = REPEATS if units < LARGE and arguments[0] not in ("submit", "cancel") else 1
        used[name] = min((measure(folder, *arguments, codes=codes) for _ in range(runs)), key=lambda use: use.cpu_s)
        print(f"{units} {name}: {used[name]}", file=sys.stderr, flush=True)

    measured("plan", "plan", manifest, *options)
    measured("submit", "submit", manifest, *options)
    measured("status", "status", "large")
    measured("status --json", "status", "large", "--json")
    measured("resume, all pending", "resume", "large")
    measured("cancel", "cancel", "large")
    measured("status, all cancelled", "status", "large", codes=(1,))
    os.chdir(folder)
    loaded = load_run("large")
    used["start of an attempt"] = start_attempts(loaded)
    with unittest.mock.patch("os.fsync", return_value=None):
        answer_all(loaded)
    measured("merge", "merge", "large")
    measured("merge again", "merge", "large")
    measured("status, done", "status", "large")
    measured("report", "report", "large", codes=(0, 1))
    return len(loaded.plan.units), used


def print_table(found: Mapping[int, Mapping[str, Usage]]) -> None:
    """Print one line per command."""
    sizes = [*found]
    print(f"Units: {', '.join(f'{size:,}' for size in sizes)}")
    print("| command | CPU seconds | growth | MiB | wall seconds |\n|---|---|---|---|---|")
    for name in found[sizes[0]]:
        rows = [found[size][name] for size in sizes]
        digits = 2 if rows[0].memory_mib else 4
        print(
            f"| {name} | {', '.join(f'{row.cpu_s:.{digits}f}' for row in rows)} | {growth(sizes, rows)}"
            f" | {rows[-1].memory_mib:.0f} | {', '.join(f'{row.wall_s:.{digits}f}' for row in rows)} |",
            flush=True,
        )


def main() -> None:
    """Measure all sizes, or those given as arguments."""
    if missing := missing_daemons():
        print(f"Not measured: {', '.join(missing)} are not installed.")
        return
    sizes = tuple(map(int, sys.argv[1:])) or SIZES
    found: dict[int, dict[str, Usage]] = {}
    with VirtualCluster(settings=SETTINGS) as cluster, slurm_conf(cluster):
        cluster.write_profile(dict.fromkeys(("core", "transformers"), sys.executable))
        for name in CLASSES:
            cluster.call("scontrol", "update", f"PartitionName={name}", "State=DOWN")
        for size in sizes:
            with tempfile.TemporaryDirectory(prefix="hpcq-verbs-") as folder:
                units, used = measure_run(Path(folder), size, cluster.profile)
                os.chdir(ROOT)
            found[units] = used
            print_table(found)


if __name__ == "__main__":
    main()
