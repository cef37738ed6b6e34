"""Hand over what is missing: to Slurm and return, or to this machine and wait. Typing it again is safe.

On Slurm the command returns when everything is queued, the merge included; on this machine it runs to the end, merges,
and prints the report.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hpcq.cli.arguments import add_json, add_manifest, add_yes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MANIFEST, -O, --dry-run, --wait, --yes, --json."""
    add_manifest(parser)
    add_json(parser)
    add_yes(parser)
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, submit nothing")
    parser.add_argument("--wait", action="store_true", help="on Slurm: return when the run has ended")


def run(arguments: argparse.Namespace) -> int:
    """Submit and print what to type next, or the report."""
    from hpcq import api
    from hpcq.cli.arguments import print_json
    from hpcq.cli.confirm import confirm
    from hpcq.cli.formatting import plan_lines
    from hpcq.cli.submit_and_wait import hand_over

    if arguments.dry_run:
        planned = api.dry_run(Path(arguments.manifest), arguments.overrides)
        if arguments.json:
            print_json(planned.document)
        else:
            print("\n".join([*plan_lines(planned), "", "Nothing was submitted: this was a dry run."]))
        return 0
    opened = api.open_manifest(Path(arguments.manifest), arguments.overrides)
    confirm(opened, yes=arguments.yes)
    return hand_over(opened, wait=arguments.wait, as_json=arguments.json)
