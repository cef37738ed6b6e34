"""CPU seconds of the commands for a small run, and of `hpcq submit` until its first call of sbatch.

Where the time goes: `python -X importtime -m hpcq …`. Most of it is imports. numpy and HDF5 (0.15 s) are imported where
results or segments are read, pydantic (0.15 s with the schemas) where a manifest is; the classes of hpcq's own modules
take the rest.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.command_line import REHEARSAL, Hpcq
from tests.cpu_time import LIBRARIES, cpu_seconds, library_command
from tests.slurm.cluster import VirtualCluster, missing_daemons

SBATCH = """#!/usr/bin/env bash
# utime, stime, cutime and cstime of the process that calls sbatch (proc_pid_stat(5)), in ticks.
sed 's/.*) //' "/proc/$PPID/stat" | cut -d' ' -f12-15 >> "$HPCQ_TEST_TIMES"
exit 1
"""
"""Records the CPU time of its caller, and fails: the run stays as it is."""


def main() -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory() as name:
        folder, python = Path(name), sys.executable
        cache = folder / "bytecode"
        hpcq = Hpcq(python=Path(python), folder=folder)
        hpcq.write(REHEARSAL)
        print(f"{cpu_seconds([python, '-c', 'pass'], folder=folder, cache=cache):.2f} s  python -c pass")
        print(f"{cpu_seconds(library_command(python), folder=folder, cache=cache):.2f} s  import {LIBRARIES}")
        new = cpu_seconds([python, "-m", "hpcq", "plan", "manifest.toml"], folder=folder, cache=cache)
        print(f"{new:.2f} s  hpcq plan, of a new run")
        if missing_daemons():
            print("  –     hpcq submit: Slurm is not installed")
        else:
            print(
                f"{submit_seconds(folder / 'slurm', python, cache):.2f} s  hpcq submit, until the first call of sbatch"
            )
        hpcq("submit", "manifest.toml")
        for verb in (("status", "rehearsal"), ("plan", "manifest.toml"), ("report", "rehearsal")):
            seconds = cpu_seconds([python, "-m", "hpcq", *verb], folder=folder, cache=cache)
            print(f"{seconds:.2f} s  hpcq {verb[0]}, of a finished run")


def submit_seconds(folder: Path, python: str, cache: Path) -> float:
    """Return the CPU seconds of `hpcq submit` and its children until the first sbatch: the least of several calls."""
    site, times = folder / "site", folder / "times"
    site.mkdir(parents=True)
    hpcq = Hpcq(python=Path(python), folder=folder)
    hpcq.write(REHEARSAL)
    (site / "sbatch").write_text(SBATCH)
    (site / "sbatch").chmod(0o700)
    with VirtualCluster() as cluster:
        cluster.write_profile({"core": python, "transformers": python})
        variables = {
            **cluster.environment(),
            "PATH": f"{site}{os.pathsep}{os.environ['PATH']}",
            "HPCQ_TEST_TIMES": str(times),
        }
        command = [python, "-m", "hpcq", "submit", "manifest.toml", "-O", f"cluster.profile={cluster.profile}"]
        for _ in range(5):
            hpcq(*command[3:], env={**variables, "PYTHONPYCACHEPREFIX": str(cache), "PYTHONDONTWRITEBYTECODE": ""})
    ticks = os.sysconf("SC_CLK_TCK")
    return min(sum(map(int, line.split())) / ticks for line in times.read_text().splitlines()[1:])


if __name__ == "__main__":
    main()
