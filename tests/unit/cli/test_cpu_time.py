"""CPU time of the commands that people type again and again: mostly imports, for runs of any size."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.command_line import REHEARSAL, Hpcq
from tests.cpu_time import least_cpu_seconds, library_command
from tests.report_sample import VARIANTS, Sample, write_sample_run

IMPORTED = """
import sys
from hpcq.cli import main
sys.argv = ["hpcq", *sys.argv[1:]]
code = main()
print("imported:", *sorted(name for name in sys.modules if "." not in name or name.startswith("hpcq.")))
"""


def test_commands_cost_little_more_than_the_libraries_that_they_import(
    finished: Hpcq, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In imports of the libraries, which a slow machine slows down as well: 0.5, 1.2 and 1.7. Before: 3.0, 3.5, 3.2."""
    folder = tmp_path_factory.mktemp("new")
    replace(finished, folder=folder).write(REHEARSAL)
    python = str(finished.python)
    allowed = {("status", "rehearsal"): 1.0, ("report", "rehearsal"): 2.0, ("plan", "manifest.toml"): 2.4}
    folders = [finished.folder, finished.folder, folder]
    commands = [([python, "-m", "hpcq", *arguments], where) for arguments, where in zip(allowed, folders, strict=True)]
    unit_s, *seconds = least_cpu_seconds([(library_command(python), folder), *commands], cache=folder / "bytecode")
    ratios = dict(zip(allowed, (one / unit_s for one in seconds), strict=True))
    assert all(ratios[arguments] < most for arguments, most in allowed.items()), ratios


def imported(hpcq: Hpcq, *arguments: str) -> set[str]:
    """Return the modules that a command imports: libraries by their top name, those of hpcq by their full name."""
    command = [str(hpcq.python), "-c", IMPORTED, *arguments]
    done = subprocess.run(command, cwd=hpcq.folder, capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("imported:")[2].split())


@pytest.mark.parametrize("is_finished", [False, True])
def test_status_imports_no_library(finished: Hpcq, *, is_finished: bool) -> None:
    """Neither HDF5, pydantic, numpy nor psutil, and no module of the planner or the manifest.

    The results of a finished run are read once.
    """
    if is_finished:
        finished("status", "rehearsal")
    else:
        (finished.folder / "runs" / "rehearsal" / "results.h5").unlink()
    modules = imported(finished, "status", "rehearsal")
    assert "hpcq.monitor.status" in modules
    assert modules.isdisjoint({"h5py", "numpy", "pydantic", "submitit", "psutil", "tabulate", "huggingface_hub"})
    assert [name for name in modules if name.startswith(("hpcq.plan.", "hpcq.manifest.", "hpcq.stage."))] == []


def test_plan_of_a_new_run_imports_what_it_needs(hpcq: Hpcq) -> None:
    """pydantic for the manifest; no HDF5, no numpy, no launcher."""
    hpcq.write(REHEARSAL)
    modules = imported(hpcq, "plan", "manifest.toml")
    assert "pydantic" in modules
    assert modules.isdisjoint({"h5py", "numpy", "submitit", "psutil", "tabulate", "hpcq.launch.job"})


def test_report_imports_no_planner(finished: Hpcq) -> None:
    """HDF5 for the results; neither pydantic nor the planner."""
    modules = imported(finished, "report", "rehearsal")
    assert "h5py" in modules
    assert modules.isdisjoint({"pydantic", "submitit", "tabulate", "hpcq.plan.planner", "hpcq.manifest.schema"})


def test_a_small_report_does_not_import_scipy(finished: Hpcq, tmp_path: Path) -> None:
    """Its import takes as long as the rest of the statistics; long sums alone need it."""
    sample = Sample(n=40, variants=VARIANTS[:3], tasks=("arc_challenge", "truthfulqa_mc2"))
    write_sample_run(tmp_path / "runs" / "small", sample)
    modules = imported(replace(finished, folder=tmp_path), "report", "small")
    assert "hpcq.report.statistics.bootstrap" in modules
    assert "scipy" not in modules
