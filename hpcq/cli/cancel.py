"""Cancel a run's jobs, or those of the units named. What they committed is kept."""

from __future__ import annotations

import argparse

from hpcq.cli.arguments import add_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN and UNITs."""
    add_run(parser)
    parser.add_argument("units", metavar="UNIT", nargs="*", help="ids of units, or parts of them; by default all")


def run(arguments: argparse.Namespace) -> int:
    """Cancel and say how many."""
    from hpcq import api

    cancelled = api.cancel(arguments.run_name, arguments.units)
    if not cancelled:
        print("Nothing to cancel: no job of this run is waiting or running.")
        return 0
    print(f"Cancelled {len(cancelled)} {'unit' if len(cancelled) == 1 else 'units'}; what they committed is kept.")
    print(f"To go on later: hpcq resume {arguments.run_name}")
    return 0
