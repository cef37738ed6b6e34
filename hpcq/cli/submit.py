"""Submit all missing units of a manifest to Slurm, or run them on this machine. Can be repeated safely.

With Slurm, the command returns when all jobs, the merge included, are in the queue. With the local scheduler, it runs
all units, merges, and prints the report.
"""

from __future__ import annotations

import argparse

from hpcq.cli.arguments import add_json, add_manifest, add_yes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MANIFEST, -O, --dry-run, --wait, --yes and --json."""
    add_manifest(parser)
    add_json(parser)
    add_yes(parser)
    parser.add_argument("--dry-run", action="store_true", help="run all checks and print the plan, but submit nothing")
    parser.add_argument("--wait", action="store_true", help="with Slurm: do not return until the run has ended")


def run(arguments: argparse.Namespace) -> int:
    """Submit and print the next commands, or the report."""
    from hpcq.api import Run
    from hpcq.cli.arguments import print_json
    from hpcq.cli.formatting import plan_lines
    from hpcq.cli.submit_and_wait import submit_and_wait

    to_submit = Run(arguments.manifest, arguments.overrides)
    if arguments.dry_run:
        planned = to_submit.check()
        if arguments.json:
            print_json(planned.document)
        else:
            print("\n".join([*plan_lines(planned), "", "Nothing was submitted: this was a dry run."]))
        return 0
    return submit_and_wait(to_submit, wait=arguments.wait, as_json=arguments.json, yes=arguments.yes)
