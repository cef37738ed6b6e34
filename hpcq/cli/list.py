"""List the runs in a folder: state, completed units, GPU-hours, size and last change, the latest first."""

from __future__ import annotations

import argparse

from hpcq.cli.arguments import add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add FOLDER and --json."""
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default="runs", help="folder of runs (default: runs)")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print one line per run."""
    import hpcq
    from hpcq.cli.formatting import overview_lines

    found = hpcq.overviews(arguments.folder)
    if arguments.json:
        print_json({"schema": 1, "runs": [one.as_json() for one in found]})
    else:
        print("\n".join(overview_lines(found, arguments.folder)))
    return 0
