"""Arguments shared by several verbs, and output of JSON documents."""

from __future__ import annotations

import argparse
import json
from typing import Any

UNIT_HELP = (
    "a unit's id, or a whole component of ids: a kind (evaluate), a model, a scheme, a variant, a shard (0of2), or at"
    " least 6 digits of the digest; or the name of a line in the report ('Model scheme'); or a quoted shell pattern for"
    " whole ids ('*w4a16*')"
)


def add_manifest(parser: argparse.ArgumentParser) -> None:
    """Add MANIFEST and -O."""
    parser.add_argument("manifest", metavar="MANIFEST", help="a TOML manifest, or the manifest.lock.toml of a run")
    add_overrides(parser)


def add_overrides(
    parser: argparse.ArgumentParser, text: str = "override a key of the manifest, e.g. -O tasks.limit=20 (repeatable)"
) -> None:
    """Add -O KEY=VALUE, which can be repeated, with `text` as its help."""
    parser.add_argument(
        "-O",
        "--override",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help=text,
    )


def add_run(parser: argparse.ArgumentParser, *, is_optional: bool = False) -> None:
    """Add RUN: the name or folder of a run, or its manifest; if it is optional, that of the latest run by default."""
    text = "name or folder of the run, or its manifest"
    if is_optional:
        parser.add_argument("run_name", metavar="RUN", nargs="?", help=f"{text} (default: the latest run in runs)")
    else:
        parser.add_argument("run_name", metavar="RUN", help=text)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json: standard output is one JSON document."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document and nothing else on standard output"
    )


def add_yes(parser: argparse.ArgumentParser) -> None:
    """Add --yes."""
    parser.add_argument(
        "--yes", action="store_true", help="submit without confirmation (overrides plan.confirm_above_gpu_hours)"
    )


def print_json(document: dict[str, Any]) -> None:
    """Print `document` with indentation; keys keep their order."""
    print(json.dumps(document, indent=2))
