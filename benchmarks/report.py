"""CPU seconds and peak memory of `hpcq report` in every format, for runs of 100 k, 300 k and 1 M responses.

Eight variants of two models answer the same tasks (tests/report_sample.py); the number of items grows. `growth` is the
CPU time per additional response between the two larger sizes, relative to that between the two smaller ones: 1 is
linear. Peak memory is that of the process.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from parts.process_use import Usage, growth, measure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hpcq.cli.report import EXPORTS, FORMATS
from hpcq.store import read_results
from tests.report_sample import Sample, write_sample_run

ITEMS = (600, 1_800, 6_000)
"""Items of each task: 168 responses each."""


def measure_run(folder: Path, items: int) -> tuple[int, dict[str, Usage]]:
    """Return the number of responses of a run, and what a report in each format used."""
    run = write_sample_run(folder / "runs" / "large", Sample(n=items))
    variants = read_results(run.results).variants
    responses = sum(sum(variant.rows.values()) for variant in variants)
    print(f"{responses:,} responses, results.h5 of {run.results.stat().st_size / 2**20:.0f} MiB", file=sys.stderr)
    used = {}
    for name in (*FORMATS, *EXPORTS):
        output = folder / f"out.{name}"
        used[name] = measure(folder, "report", "large", "--format", name, "--output", output, codes=(0, 1))
        print(f"  {name}: {used[name]}", file=sys.stderr, flush=True)
    return responses, used


def print_table(found: Mapping[int, Mapping[str, Usage]]) -> None:
    """Print one line per format."""
    sizes = [*found]
    print(f"Responses: {', '.join(f'{size:,}' for size in sizes)}")
    print("| format | CPU seconds | growth | MiB |\n|---|---|---|---|")
    for name in found[sizes[0]]:
        rows = [found[size][name] for size in sizes]
        cpu = ", ".join(f"{row.cpu_s:.1f}" for row in rows)
        memory = ", ".join(f"{row.memory_mib:.0f}" for row in rows)
        print(f"| {name} | {cpu} | {growth(sizes, rows)} | {memory} |", flush=True)


def main() -> None:
    """Measure all sizes, or the numbers of items given as arguments."""
    found = {}
    for items in tuple(map(int, sys.argv[1:])) or ITEMS:
        with tempfile.TemporaryDirectory(prefix="hpcq-report-") as folder:
            responses, used = measure_run(Path(folder), items)
        found[responses] = used
    print_table(found)


if __name__ == "__main__":
    main()
