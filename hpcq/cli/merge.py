"""Merge what a run has committed so far into its results.h5 and score it; safe at any time, as often as you like."""

from __future__ import annotations

import argparse

from hpcq.cli.arguments import add_json, add_run, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, --json."""
    add_run(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Merge and print what was found; exit code 1 if responses are missing or in conflict."""
    from hpcq import api
    from hpcq.cli.formatting import merge_lines

    document = api.merge(arguments.run_name)
    if arguments.json:
        print_json(document)
    else:
        print("\n".join(merge_lines(document)))
    return 1 if document["missing"] or document["conflicts"] else 0
