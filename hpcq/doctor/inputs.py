"""Checks of what a manifest reads: the hub, models, data and texts."""

from __future__ import annotations

from collections.abc import Iterator

from hpcq.doctor.finding import Finding, fail, ok, warning
from hpcq.run.load import LoadedRun
from hpcq.run.staging import check_repositories, run_inputs

SECTION = "inputs"


def input_findings(loaded: LoadedRun) -> Iterator[Finding]:
    """Check that repositories exist and may be read, and that everything that the run reads is staged."""
    resolved = loaded.resolved
    yield from (fail(SECTION, problem) for problem in dict.fromkeys((*resolved.missing, *resolved.absent)))
    check_repositories(loaded)
    for each in run_inputs(loaded):
        if each.is_staged():
            yield ok(SECTION, f"{each.item} is staged.")
        else:
            size = each.missing_bytes() / 1e9
            yield warning(
                SECTION,
                f"{each.item} is not staged" + (f" ({size:.1f} GB)." if size else "."),
                f"Run `hpcq stage {resolved.manifest.source.path}` where there is a network.",
            )
