"""Fixtures of a trial: workloads, cluster profile, small disk, adjustable clock, and the fault-free reference run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hpcq.evaluate.backends.synthetic import JOURNAL_VARIABLE
from hpcq.quantize.synthetic import SECONDS_VARIABLE
from tests.command_line import Hpcq
from tests.results_data import read_datasets
from tests.slurm.cluster import NODES

RUN = "campaign"
FLUSH_INTERVAL_S = 3.0
QUANTIZE_S = 3.0
TIME_LIMIT_MIN = 3
"""The longest unit takes half a minute. A job that slurmctld, after SIGKILL, wrongly lists as running ends only by this
limit."""
DISK_BYTES = 24 * 2**20

_SYNTHETIC = """
[run]
name = "campaign"
[cluster]
profile = "local"
[[models]]
id = "meta-llama/Llama-3.1-8B-Instruct"
[schemes]
use = ["bf16", "synthetic-w4a16", "other"]
[[schemes.define]]
name = "other"
base = "synthetic-w4a16"
group_size = 32
[tasks]
use = ["arc_challenge", "gsm8k"]
limit = 100
[evaluate]
backend = "synthetic"
batch_size = 2
"""

_REAL = """
[run]
name = "campaign"
[cluster]
profile = "local"
[[models]]
id = "HuggingFaceTB/SmolLM2-135M-Instruct"
source = "packages"
[schemes]
use = ["bf16", "fp8-dynamic"]
[tasks]
use = ["arc_challenge", "winogrande"]
data = "packages"
limit = 8
[evaluate]
dtype = "float32"
batch_size = 2
"""
REQUESTS_PER_VARIANT = 500
"""In the synthetic workload: four for each of 100 documents, and one for each of another 100."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A manifest that the campaign runs repeatedly. `is_real`: with a real model instead of synthetic responses."""

    name: str
    manifest: str
    is_real: bool


SYNTHETIC = Workload(name="synthetic", manifest=_SYNTHETIC, is_real=False)
REAL = Workload(name="real model", manifest=_REAL, is_real=True)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Results of a run without faults.

    Attributes:
        data: Bytes of each dataset of its results file.
        expected: Number of requests.
    """

    data: Mapping[str, bytes]
    expected: int


def run_reference(workload: Workload, hpcq: Hpcq, pythons: Mapping[str, Path]) -> Reference:
    """Run `workload` on this machine without faults, in the folder of `hpcq`.

    Raises:
        RuntimeError: The model cannot be staged, or the run fails.
    """
    manifest = hpcq.write(workload.manifest)
    profile = _write_local_profile(hpcq.folder, pythons)
    if workload.is_real and (staged := hpcq("stage", manifest, timeout_s=1800)).code:
        raise RuntimeError(f"The real model cannot be staged:\n{staged.out}{staged.err}")
    submitted = hpcq("submit", manifest, "-O", f"cluster.profile={profile}", timeout_s=1800)
    if submitted.code:
        raise RuntimeError(f"The reference run ({workload.name}) failed:\n{submitted.out}{submitted.err}")
    merged = hpcq("merge", RUN, "--json").document
    return Reference(data=read_datasets(hpcq.folder / "runs" / RUN / "results.h5"), expected=merged["expected"])


def write_profile(folder: Path, pythons: Mapping[str, Path], variables: Mapping[str, str]) -> Path:
    """Write a profile with all nodes of the virtual cluster in one class, so that units can move to another node."""
    values: dict[str, object] = {
        "partition": "all",
        "gpu": "A6000-48",
        "nodes": len(NODES),
        "gpus_per_node": 4,
        "cpus_per_node": 48,
        "memory_gib": 200,
        "cpus_per_unit": 1,
        "memory_gib_per_unit": 2,
    }
    return _write_profile(folder, "slurm", values, pythons, variables)


def _write_local_profile(folder: Path, pythons: Mapping[str, Path]) -> Path:
    """Write the profile of this machine."""
    return _write_profile(folder, "local", {"cpus_per_node": os.cpu_count(), "memory_gib": 8}, pythons, {})


def _write_profile(
    folder: Path,
    scheduler: str,
    values: Mapping[str, object],
    pythons: Mapping[str, Path],
    variables: Mapping[str, str],
) -> Path:
    lines = ['name = "campaign"', f'scheduler = "{scheduler}"']
    lines += [f"slurm.time_limit_minutes = {TIME_LIMIT_MIN}"] if scheduler == "slurm" else []
    lines += ["[gpu_classes.any]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    for name, python in pythons.items():
        lines += [f"[environments.{name}]", f"python = {json.dumps(str(python))}"]
        lines += [f"variables.{key} = {json.dumps(value)}" for key, value in variables.items()]
    path = folder / "profile.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def synthetic_variables(journal: Path) -> dict[str, str]:
    """Return the environment variables of synthetic workers: duration of a quantization, folder of the journal."""
    return {SECONDS_VARIABLE: str(QUANTIZE_S), JOURNAL_VARIABLE: str(journal)}


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a small file system at `folder`, which requires root.

    Raises:
        CalledProcessError: mount failed.
        FileNotFoundError: mount is not installed.
    """
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "hpcq-faults", str(folder)], check=True)
    try:
        yield folder
    finally:
        # Lazily: a worker that should have exited may still have an open file. The trial reports such workers itself.
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def can_mount(folder: Path) -> bool:
    """Whether this user can mount a small disk."""
    try:
        with small_disk(folder):
            return True
    except (subprocess.CalledProcessError, FileNotFoundError):
        return False


def python_with_clock(folder: Path, python: Path) -> tuple[Path, Path] | None:
    """Build an interpreter whose wall clock is offset by the number of seconds in a file.

    Returns:
        The interpreter and the file; None: there is no C compiler.
    """
    if shutil.which("cc") is None:
        return None
    library, offset_file, wrapper = folder / "clock.so", folder / "clock", folder / "python"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    offset_file.write_bytes(struct.pack("q", 0))
    wrapper.write_text(f'#!/bin/sh\nLD_PRELOAD={library} HPCQ_TEST_CLOCK={offset_file} exec {python} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper, offset_file
