"""Print the logs of a run's units, or of the units that UNIT selects."""

from __future__ import annotations

import argparse
import sys
import time

from hpcq.cli.arguments import UNIT_HELP, add_run
from hpcq.core.sentences import terminal_text

FOLLOW_INTERVAL_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add RUN, UNIT and --follow."""
    add_run(parser)
    parser.add_argument("unit", metavar="UNIT", nargs="?", help=f"{UNIT_HELP} (default: all units)")
    parser.add_argument("--follow", action="store_true", help="keep printing new lines until interrupted")


def run(arguments: argparse.Namespace) -> int:
    """Print the logs, each below a line with its path."""
    import hpcq

    positions: dict[str, int] = {}
    while True:
        for path in hpcq.find(arguments.run_name).logs(arguments.unit):
            with path.open(encoding="utf-8", errors="replace") as log:
                log.seek(positions.get(str(path), 0))
                text = log.read()
                if str(path) not in positions or (text and arguments.follow):
                    print(f"==> {path} <==")
                positions[str(path)] = log.tell()
            sys.stdout.write(terminal_text(text))
        sys.stdout.flush()
        if not arguments.follow:
            return 0
        time.sleep(FOLLOW_INTERVAL_S)
