"""Cancel the jobs of a run, or of some of its units. Committed results are kept."""

from __future__ import annotations

import argparse

from hpcq.cli.arguments import add_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add RUN and UNIT."""
    add_run(parser)
    parser.add_argument("units", metavar="UNIT", nargs="*", help="unit ids or parts of them (default: all units)")


def run(arguments: argparse.Namespace) -> int:
    """Cancel and print the number of cancelled units."""
    import hpcq

    cancelled = hpcq.find(arguments.run_name).cancel(*arguments.units)
    if not cancelled:
        print("Nothing to cancel: no job of this run is pending or running.")
        return 0
    print(f"Cancelled {len(cancelled)} {'unit' if len(cancelled) == 1 else 'units'}; committed results are kept.")
    print(f"Continue later with: hpcq resume {arguments.run_name}")
    return 0
