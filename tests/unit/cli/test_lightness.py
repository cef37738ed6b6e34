"""The command line is light: it imports no model library and starts at once."""

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
SPY = """
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
    "words", [["--help"], ["plan", "manifests/quickstart.toml"], ["plan", "--json", "manifests/405b.toml"]]
)
def test_no_heavy_library_is_imported(core_python: Path, transformers_python: Path, words: list[str]) -> None:
    """Even where all of them can be imported, help and plan import none."""
    (packages,) = transformers_python.parents[1].glob("lib/python*/site-packages")
    assert (packages / "torch").is_dir()
    done = subprocess.run(
        [core_python, "-c", SPY, packages, *words], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    imported = done.stdout.rpartition("imported:")[2].split()
    assert "hpcq.cli" in imported
    assert not set(HEAVY) & set(imported)


def test_a_plan_needs_neither_slurm_nor_gpu_nor_network(core_python: Path) -> None:
    """With an empty PATH and, where the kernel lets us, without any network, the plan of 405B across nodes is whole."""
    alone = ["unshare", "--map-root-user", "--net"]
    tried = subprocess.run(["sh", "-c", "unshare --map-root-user --net true"], capture_output=True, check=False)
    may_unshare = tried.returncode == 0
    nowhere = "http://127.0.0.1:9"
    done = subprocess.run(
        [*(alone if may_unshare else []), core_python, "-m", "hpcq", "plan", "--json", "manifests/405b.toml"],
        cwd=CHECKOUT,
        env={"PATH": "/nonexistent", "HOME": os.environ["HOME"], "http_proxy": nowhere, "https_proxy": nowhere},
        executable=shutil.which("unshare") if may_unshare else core_python,
        capture_output=True,
        text=True,
        check=True,
    )
    units = json.loads(done.stdout)["units"]
    assert max(unit["nodes"] * unit["gpus_per_node"] for unit in units) == 16


def _fastest(command: list[str | Path], rounds: int) -> float:
    """Seconds of the fastest of several runs: what the machine can do when it is not disturbed."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    return min(times)


def test_help_starts_at_once(core_python: Path) -> None:
    """`--help` takes under ten times as long as a Python that does nothing, measured side by side."""
    nothing = _fastest([core_python, "-c", "pass"], 10)
    assert _fastest([core_python, "-m", "hpcq", "--help"], 10) < 10 * nothing
