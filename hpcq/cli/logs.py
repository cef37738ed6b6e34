"""Print what a run's units printed; with UNIT, of that unit alone (any part of its id that names one)."""

from __future__ import annotations

import argparse
import sys
import time

from hpcq.cli.arguments import add_run

FOLLOW_INTERVAL_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, UNIT, --follow."""
    add_run(parser)
    parser.add_argument("unit", metavar="UNIT", nargs="?", help="a unit's id, or a part of it; by default all units")
    parser.add_argument("--follow", action="store_true", help="go on printing what is added, until interrupted")


def run(arguments: argparse.Namespace) -> int:
    """Print the logs, each under a line with its unit and attempt."""
    from hpcq import api

    positions: dict[str, int] = {}
    while True:
        for path in api.logs(arguments.run_name, arguments.unit):
            with path.open(encoding="utf-8", errors="replace") as log:
                log.seek(positions.get(str(path), 0))
                text = log.read()
                if str(path) not in positions or (text and arguments.follow):
                    print(f"==> {path} <==")
                positions[str(path)] = log.tell()
            sys.stdout.write(text)
        sys.stdout.flush()
        if not arguments.follow:
            return 0
        time.sleep(FOLLOW_INTERVAL_S)
