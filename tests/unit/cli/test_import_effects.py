"""Imports of hpcq's modules change nothing in the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from hpcq.core.processes import identity
from hpcq.evaluate.backends.vllm.watchdog import ROOT_VARIABLE

PROGRAM = """
import importlib, json, os, pkgutil, signal, sys, threading

sys.path.append(sys.argv[1])

def umask():
    before = os.umask(0)
    os.umask(before)
    return before

def handlers():
    return {number: signal.getsignal(number) for number in signal.valid_signals()}

def state():
    return {
        "threads": [thread.name for thread in threading.enumerate()],
        "environment": dict(os.environ),
        "umask": umask(),
        "folder": os.getcwd(),
        "signals": {str(number): repr(handler) for number, handler in handlers().items()},
        "blocked signals": sorted(map(str, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
        "wake-up descriptor": (found := signal.set_wakeup_fd(-1), signal.set_wakeup_fd(found))[0],
    }

import hpcq
before, imported, missing = state(), [], {}
for module in pkgutil.walk_packages(hpcq.__path__, "hpcq."):
    if module.name == "hpcq.__main__":
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        missing[module.name] = error.name.partition(".")[0]
    else:
        imported.append(module.name)
after = state()
changes = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
json.dump({"imported": imported, "missing": missing, "changes": changes}, sys.stdout)
"""
CHECKOUT = Path(__file__).resolve().parents[3]
MODEL_LIBRARIES = {"accelerate", "compressed_tensors", "datasets", "llmcompressor", "lm_eval", "pyarrow", "torch"}
MODEL_LIBRARIES |= {"safetensors", "tokenizers", "transformers", "vllm", "gguf"}


def test_importing_every_module_changes_nothing_in_the_process(tmp_path: Path) -> None:
    """Threads, environment, umask, working directory and signals are as before, in an interpreter of the core."""
    command = [sys.executable, "-c", PROGRAM, str(CHECKOUT)]
    # As in a worker of vLLM, which imports its watchdog.
    variables = {**os.environ, ROOT_VARIABLE: str(identity(os.getpid()))}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=variables)
    found = json.loads(done.stdout)
    assert found["changes"] == {}
    assert set(found["missing"].values()) <= MODEL_LIBRARIES
    assert {"hpcq.evaluate.backends.vllm.watchdog", "hpcq.launch.job", "hpcq.cli.submit"} <= set(found["imported"])
    assert len(found["imported"]) > 5 * len(found["missing"])
