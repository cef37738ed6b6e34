"""Show where a run stands: its units by state, requests done, time left, and why what failed has failed."""

from __future__ import annotations

import argparse
import time

from hpcq.cli.arguments import add_json, add_run, print_json

WATCH_INTERVAL_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, --watch, --json."""
    add_run(parser)
    add_json(parser)
    parser.add_argument("--watch", action="store_true", help="show it again every few seconds until the run has ended")


def run(arguments: argparse.Namespace) -> int:
    """Print the picture; exit code 1 if the run is not done and nobody works on it."""
    from hpcq import api
    from hpcq.cli.formatting import status_lines
    from hpcq.core.work import State
    from hpcq.monitor.snapshot import LIVE

    while True:
        status = api.status(arguments.run_name)
        goes_on = status.state in LIVE or status.held
        again = arguments.watch and goes_on
        if not arguments.json:
            print("\n".join(status_lines(status)), flush=True)
        elif not again:
            print_json(status.as_json())
        if not again:
            return 0 if goes_on or status.state is State.DONE else 1
        time.sleep(WATCH_INTERVAL_S)
