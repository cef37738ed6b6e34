"""What a round is played with: manifests, the cluster's profile, disks and clocks of its own, and the undisturbed run.

Knows hpcq's manifests and profiles, and this machine. Knows nothing of faults.
"""

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
"""The longest unit runs for half a minute; a job that a killed slurmctld takes for running ends by this alone."""
DISK_BYTES = 24 * 2**20

_REHEARSAL = """
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
REQUESTS_OF_A_VARIANT = 500
"""Of the rehearsal: four of each of a hundred documents, and one of each of another hundred."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What is run again and again. is_real: with the real model."""

    name: str
    manifest: str
    is_real: bool


REHEARSAL = Piece(name="rehearsal", manifest=_REHEARSAL, is_real=False)
REAL = Piece(name="real model", manifest=_REAL, is_real=True)


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """The results of a run that nobody disturbed: its data, and how many requests it answered."""

    data: Mapping[str, bytes]
    expected: int


def undisturbed(piece: Piece, hpcq: Hpcq, pythons: Mapping[str, Path]) -> Undisturbed:
    """Run `piece` on this machine, in the folder of `hpcq`."""
    manifest = hpcq.write(piece.manifest)
    profile = _write_local_profile(hpcq.folder, pythons)
    if piece.is_real and (staged := hpcq("stage", manifest, timeout_s=1800)).code:
        raise RuntimeError(f"The real model cannot be had:\n{staged.out}{staged.err}")
    done = hpcq("submit", manifest, "-O", f"cluster.profile={profile}", timeout_s=1800)
    if done.code:
        raise RuntimeError(f"The undisturbed run of the {piece.name} failed:\n{done.out}{done.err}")
    merged = hpcq("merge", RUN, "--json").document
    return Undisturbed(data=read_datasets(hpcq.folder / "runs" / RUN / "results.h5"), expected=merged["expected"])


def write_profile(folder: Path, pythons: Mapping[str, Path], variables: Mapping[str, str]) -> Path:
    """Write a profile whose one class is all nodes of the virtual cluster, so that a unit has somewhere else to go."""
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


def rehearsal_variables(journal: Path) -> dict[str, str]:
    """What the workers of a rehearsal are told: how long to quantize, and where to write down what they answer."""
    return {SECONDS_VARIABLE: str(QUANTIZE_S), JOURNAL_VARIABLE: str(journal)}


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own at `folder`, which only root may have."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "hpcq-faults", str(folder)], check=True)
    try:
        yield folder
    finally:
        # Lazily: a worker that should be gone may still have a file open, and the judge says so elsewhere.
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def may_mount(folder: Path) -> bool:
    """Whether this user may have small disks."""
    try:
        with small_disk(folder):
            return True
    except (subprocess.CalledProcessError, FileNotFoundError):
        return False


def clocked_python(folder: Path, python: Path) -> tuple[Path, Path] | None:
    """An interpreter whose wall clock is wrong by what a file says, and that file; None where nothing compiles."""
    if shutil.which("cc") is None:
        return None
    library, clock, wrapper = folder / "clock.so", folder / "clock", folder / "python"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    clock.write_bytes(struct.pack("q", 0))
    wrapper.write_text(f'#!/bin/sh\nLD_PRELOAD={library} HPCQ_TEST_CLOCK={clock} exec {python} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper, clock
