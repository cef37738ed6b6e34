"""Bring a manifest's models, benchmark items and calibration text to this file system; what is there is left alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hpcq.cli.arguments import add_manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MANIFEST, -O."""
    add_manifest(parser)


def run(arguments: argparse.Namespace) -> int:
    """Stage, telling on standard error what is being done."""
    from hpcq import api

    staged = api.stage(
        Path(arguments.manifest), arguments.overrides, progress=lambda line: print(line, file=sys.stderr, flush=True)
    )
    for path in staged:
        print(path)
    return 0
