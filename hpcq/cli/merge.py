"""Merge the responses committed so far into results.h5 and score them. Can be repeated at any time."""

from __future__ import annotations

import argparse

from hpcq.cli.arguments import add_json, add_run, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add RUN, --run-code and --json."""
    add_run(parser)
    parser.add_argument(
        "--run-code", action="store_true", help="run code that the models wrote on this machine, in a sandbox"
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Merge and print the counts; exit code 1 if responses are missing, in conflict or invalid."""
    import hpcq
    from hpcq.cli.formatting import merge_lines

    document = hpcq.find(arguments.run_name).merge(run_code=arguments.run_code)
    if arguments.json:
        print_json(document)
    else:
        print("\n".join(merge_lines(document)))
    return 1 if document["missing"] or document["conflicts"] or document["withheld"] else 0
