"""Submit all missing units of a manifest to Slurm, or run them on this machine. Can be repeated safely.

With Slurm, the command returns when all jobs, the merge included, are in the queue. With the local scheduler, it runs
all units, merges, and prints the report.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hpcq.cli.arguments import add_json, add_manifest, add_yes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MANIFEST, -O, --dry-run, --wait, --yes and --json."""
    add_manifest(parser)
    add_json(parser)
    add_yes(parser)
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, submit nothing")
    parser.add_argument("--wait", action="store_true", help="with Slurm: return when the run has ended")


def run(arguments: argparse.Namespace) -> int:
    """Submit and print the next commands, or the report."""
    from hpcq import api
    from hpcq.cli.arguments import print_json
    from hpcq.cli.formatting import plan_lines
    from hpcq.cli.submit_and_wait import confirm, submit_and_wait

    if arguments.dry_run:
        planned = api.dry_run(Path(arguments.manifest), arguments.overrides)
        if arguments.json:
            print_json(planned.document)
        else:
            print("\n".join([*plan_lines(planned), "", "Nothing was submitted: this was a dry run."]))
        return 0
    loaded = api.load_manifest(Path(arguments.manifest), arguments.overrides)
    confirm(loaded, yes=arguments.yes)
    return submit_and_wait(loaded, wait=arguments.wait, as_json=arguments.json)
