"""The command line imports no model library and starts quickly."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

MANIFESTS = Path(__file__).resolve().parents[3] / "manifests"
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
    "arguments", [["--help"], ["plan", MANIFESTS / "quickstart.toml"], ["plan", "--json", MANIFESTS / "405b.toml"]]
)
def test_no_heavy_library_is_imported(
    core_python: Path, transformers_python: Path, arguments: list[str | Path]
) -> None:
    """`--help` and `plan` import none of them, even if all are installed."""
    (packages,) = transformers_python.parents[1].glob("lib/python*/site-packages")
    assert (packages / "torch").is_dir()
    done = subprocess.run(
        [core_python, "-c", PRINT_IMPORTED_MODULES, packages, *arguments],
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
    kept = {name: os.environ[name] for name in ("HOME", "HPCQ_CACHE")}
    done = subprocess.run(
        [*(no_network if may_unshare else []), core_python, "-m", "hpcq", "plan", "--json", MANIFESTS / "405b.toml"],
        env={"PATH": "/nonexistent", **kept, "http_proxy": closed_port, "https_proxy": closed_port},
        executable=shutil.which("unshare") if may_unshare else core_python,
        capture_output=True,
        text=True,
        check=True,
    )
    units = json.loads(done.stdout)["units"]
    assert max(unit["nodes"] * unit["gpus_per_node"] for unit in units) == 16


def _cpu_seconds(*command: str | Path) -> float:
    """Return the processor time of a command. Unlike the elapsed time, it does not depend on other processes' load."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_starts_quickly(core_python: Path) -> None:
    """`--help` takes less than ten times the processor time of an empty Python program."""
    rounds = [
        (_cpu_seconds(core_python, "-c", "pass"), _cpu_seconds(core_python, "-m", "hpcq", "--help")) for _ in range(10)
    ]
    empty, full = map(min, zip(*rounds, strict=True))
    assert full < 10 * empty
