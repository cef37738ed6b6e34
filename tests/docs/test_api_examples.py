"""Public Python API: every example in its docstrings, executed in one folder against one real run."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path

import pytest

import hpcq
from hpcq import api

MANIFEST = """
[run]
name = "demo"
[cluster]
profile = "local"
[[models]]
id = "HuggingFaceTB/SmolLM2-135M-Instruct"
source = "packages"
[schemes]
use = ["bf16"]
[tasks]
use = ["arc_challenge"]
limit = 4
data = "packages"
"""
NEEDS_SLURM = {"init_profile"}
"""Its example is executed in tests/slurm."""


@pytest.mark.timeout(900)
def test_every_example_of_the_api_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples of the package, the module, each class and each function print what the docstring shows."""
    monkeypatch.chdir(tmp_path)
    Path("m.toml").write_text(MANIFEST, encoding="utf-8")
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    finder = doctest.DocTestFinder(exclude_empty=True)
    # In the order of names: the module's own example comes first and submits the run that the others read.
    examples = [*finder.find(api, "hpcq.api"), *finder.find(hpcq, "hpcq")]
    for example in examples:
        if example.name.rpartition(".")[2] not in NEEDS_SLURM:
            runner.run(example)
    assert runner.summarize(verbose=False).failed == 0


def test_every_public_name_has_an_example() -> None:
    """Each function of the API, and each public method of a run, has an example in its docstring."""
    functions = [getattr(api, name) for name in api.__all__ if inspect.isfunction(getattr(api, name))]
    methods = [method for name, method in inspect.getmembers(api.Run, inspect.isfunction) if not name.startswith("_")]
    without = [one.__qualname__ for one in (*functions, *methods) if ">>>" not in (one.__doc__ or "")]
    assert without == []
