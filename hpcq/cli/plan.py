"""Show the units, arrays and estimates of a manifest; nothing is written or submitted."""

from __future__ import annotations

import argparse

from hpcq.cli.arguments import add_json, add_manifest, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MANIFEST, -O, --json and --units."""
    add_manifest(parser)
    add_json(parser)
    parser.add_argument("--units", action="store_true", help="list every unit, not only the arrays")


def run(arguments: argparse.Namespace) -> int:
    """Plan and print."""
    from hpcq.api import Run
    from hpcq.cli.formatting import plan_lines

    planned = Run(arguments.manifest, arguments.overrides).plan()
    if arguments.json:
        print_json(planned.document)
    else:
        print("\n".join(plan_lines(planned, with_units=arguments.units)))
    return 0
