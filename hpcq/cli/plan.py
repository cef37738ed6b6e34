"""Show the units, arrays and estimates of a manifest; nothing is written or submitted."""

from __future__ import annotations

import argparse
from pathlib import Path

from hpcq.cli.arguments import add_json, add_manifest, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MANIFEST, -O, --json and --units."""
    add_manifest(parser)
    add_json(parser)
    parser.add_argument("--units", action="store_true", help="list every unit, not only the arrays")


def run(arguments: argparse.Namespace) -> int:
    """Plan and print."""
    from hpcq import api
    from hpcq.cli.formatting import plan_lines

    planned = api.plan(Path(arguments.manifest), arguments.overrides)
    if arguments.json:
        print_json(planned.document)
    else:
        print("\n".join(plan_lines(planned, with_units=arguments.units)))
    return 0
