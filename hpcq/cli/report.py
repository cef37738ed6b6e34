"""Print the scores of one or more runs as a table, or in a format for papers, sheets, pages and programs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

FORMATS = ("text", "md", "csv", "latex", "html", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN …, --format, --compare, --output."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's name or folder, or the manifest that names it")
    parser.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    parser.add_argument(
        "--compare", metavar="STUDY", help="show beside each score what a published study reports: 'published' for any"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="write to FILE instead of standard output")


def run(arguments: argparse.Namespace) -> int:
    """Write the report."""
    from hpcq import api

    text = api.report(arguments.runs, output_format=arguments.format, compare=arguments.compare)
    if arguments.output is None:
        sys.stdout.write(text)
    else:
        from hpcq.core.files import write_text

        write_text(arguments.output, text)
        print(f"Wrote {arguments.output}", file=sys.stderr)
    return 0
