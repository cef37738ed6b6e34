"""Stage models, data, texts and Python environments of a manifest on the shared file system.

Run it on a host with a network, such as a login node. It can be interrupted and repeated.
"""

from __future__ import annotations

import argparse

from hpcq.cli.arguments import add_manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MANIFEST and -O."""
    add_manifest(parser)


def run(arguments: argparse.Namespace) -> int:
    """Stage, with progress and one line per item on standard error."""
    from hpcq.api import Run
    from hpcq.cli.stage_display import format_bytes, stage_display

    with stage_display() as reporter:
        staged = Run(arguments.manifest, arguments.overrides).stage(reporter=reporter)
    downloaded = sum(item.downloaded for item in staged)
    print(f"All {len(staged)} inputs of {arguments.manifest} are staged ({format_bytes(downloaded)} downloaded now).")
    return 0
