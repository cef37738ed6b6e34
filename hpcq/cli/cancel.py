"""Cancel the jobs of a run, or of some of its units. Committed results are kept."""

from __future__ import annotations

import argparse

from hpcq.cli.arguments import UNIT_HELP, add_run

MAX_LISTED_UNITS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add RUN and UNIT."""
    add_run(parser)
    parser.add_argument("units", metavar="UNIT", nargs="*", help=f"{UNIT_HELP} (default: all units)")


def run(arguments: argparse.Namespace) -> int:
    """Print what each UNIT selects, cancel, and print the number of cancelled units."""
    import hpcq

    found = hpcq.find(arguments.run_name)
    for name, selected in found.match_units(*arguments.units).items():
        print(f"{name}: {_count(len(selected))}")
        for unit_id in selected[:MAX_LISTED_UNITS]:
            print(f"  {unit_id}")
        if len(selected) > MAX_LISTED_UNITS:
            print(f"  … and {len(selected) - MAX_LISTED_UNITS} more")
    cancelled = found.cancel(*arguments.units)
    if not cancelled:
        of_what = "these units" if arguments.units else "this run"
        print(f"Nothing to cancel: no job of {of_what} is pending or running.")
        return 0
    print(f"Cancelled {_count(len(cancelled))}; committed results are kept.")
    print(f"Continue later with: hpcq resume {arguments.run_name}")
    return 0


def _count(number: int) -> str:
    return f"{number} {'unit' if number == 1 else 'units'}"
