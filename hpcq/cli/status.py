"""Show the state of a run: units by state, completed requests, time left, and reasons of failures."""

from __future__ import annotations

import argparse
import time

from hpcq.cli.arguments import add_json, add_run, print_json

WATCH_INTERVAL_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add RUN, --watch and --json."""
    add_run(parser, is_optional=True)
    add_json(parser)
    parser.add_argument("--watch", action="store_true", help="refresh every few seconds until the run has ended")


def run(arguments: argparse.Namespace) -> int:
    """Print the state; exit code 1: not done, and no job or command works on it; 3: Slurm does not respond."""
    import hpcq
    from hpcq.cli.formatting import status_lines
    from hpcq.core.errors import SetupError
    from hpcq.core.work_records import UnitState
    from hpcq.monitor.status import ACTIVE_STATES

    again, run_of_user = False, hpcq.find(arguments.run_name) if arguments.run_name else hpcq.latest()
    while True:
        status = run_of_user.status(patient=again)
        is_active = status.state in ACTIVE_STATES or status.is_locked
        again = arguments.watch and (is_active or status.may_be_active)
        if not arguments.json:
            print("\n".join(status_lines(status)), flush=True)
        elif not again:
            print_json(status.as_json())
        if not again:
            if status.slurm_error:
                return SetupError.exit_code
            return 0 if is_active or status.state is UnitState.DONE else 1
        time.sleep(WATCH_INTERVAL_S)
