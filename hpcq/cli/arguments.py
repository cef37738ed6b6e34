"""Arguments that several verbs share, in the same words everywhere, and the one way to print a JSON document."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_manifest(parser: argparse.ArgumentParser) -> None:
    """MANIFEST and -O key=value."""
    parser.add_argument("manifest", metavar="MANIFEST", help="a TOML manifest, or the manifest.lock.toml of a run")
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """-O key=value, as often as needed."""
    parser.add_argument(
        "-O",
        "--override",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set a key of the manifest, as in -O tasks.limit=20 (repeat for more)",
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """RUN: a name, a folder, or the manifest that names it."""
    parser.add_argument("run_name", metavar="RUN", help="a run's name or folder, or the manifest that names it")


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json: standard output holds one JSON document and nothing else."""
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output, nothing else")


def add_yes(parser: argparse.ArgumentParser) -> None:
    """--yes."""
    parser.add_argument(
        "--yes", action="store_true", help="hand over without asking, whatever plan.confirm_above_gpu_hours says"
    )


def print_json(document: dict[str, Any]) -> None:
    """Print `document`, indented, keys in the order in which they were made."""
    print(json.dumps(document, indent=2))
