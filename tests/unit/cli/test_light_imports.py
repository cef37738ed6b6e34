"""The command line imports no model library and starts quickly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
HEAVY = ("torch", "transformers", "vllm", "lm_eval", "datasets", "llmcompressor", "matplotlib")
PRINT_IMPORTED_MODULES = """
import runpy, sys
sys.path.append(sys.argv[1])
sys.argv = ["hpcq", *sys.argv[2:]]
try:
    runpy.run_module("hpcq", run_name="__main__")
except SystemExit:
    pass
print("imported:", *sys.modules)
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plan", "manifests/quickstart.toml"], ["plan", "--json", "manifests/405b.toml"]]
)
def test_no_heavy_library_is_imported(core_python: Path, transformers_python: Path, arguments: list[str]) -> None:
    """`--help` and `plan` import none of them, even if all are installed."""
    (packages,) = transformers_python.parents[1].glob("lib/python*/site-packages")
    assert (packages / "torch").is_dir()
    done = subprocess.run(
        [core_python, "-c", PRINT_IMPORTED_MODULES, packages, *arguments],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = done.stdout.rpartition("imported:")[2].split()
    assert "hpcq.cli" in imported
    assert not set(HEAVY) & set(imported)


def test_a_plan_needs_neither_slurm_nor_gpu_nor_network(core_python: Path) -> None:
    """The plan of 405B is complete with an empty PATH and, if the kernel permits, in a network namespace."""
    no_network = ["unshare", "--map-root-user", "--net"]
    probe = subprocess.run(["sh", "-c", "unshare --map-root-user --net true"], capture_output=True, check=False)
    may_unshare = probe.returncode == 0
    closed_port = "http://127.0.0.1:9"
    done = subprocess.run(
        [*(no_network if may_unshare else []), core_python, "-m", "hpcq", "plan", "--json", "manifests/405b.toml"],
        cwd=CHECKOUT,
        env={"PATH": "/nonexistent", "HOME": os.environ["HOME"], "http_proxy": closed_port, "https_proxy": closed_port},
        executable=shutil.which("unshare") if may_unshare else core_python,
        capture_output=True,
        text=True,
        check=True,
    )
    units = json.loads(done.stdout)["units"]
    assert max(unit["nodes"] * unit["gpus_per_node"] for unit in units) == 16


def _fastest(command: list[str | Path], rounds: int) -> float:
    """Return the seconds of the fastest of several runs, to exclude load from other processes."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    return min(times)


def test_help_starts_quickly(core_python: Path) -> None:
    """`--help` takes less than ten times as long as an empty Python program, measured on the same machine."""
    empty = _fastest([core_python, "-c", "pass"], 10)
    assert _fastest([core_python, "-m", "hpcq", "--help"], 10) < 10 * empty
