"""Print the scores of one or more runs as a table, or as Markdown, CSV, LaTeX, HTML or JSON."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

FORMATS = ("text", "md", "csv", "latex", "html", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add RUN …, --format, --json, --compare and --output."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="names or folders of runs, or their manifests")
    parser.add_argument("--format", choices=FORMATS, default="text", help="output format (default: text)")
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="same as --format json")
    parser.add_argument(
        "--compare",
        metavar="STUDY",
        help="add the published scores of STUDY, or of all studies in the catalog ('published')",
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="write to FILE instead of standard output")


def run(arguments: argparse.Namespace) -> int:
    """Write the report."""
    import hpcq
    from hpcq.cli.formatting import terminal_width

    text = hpcq.make_report(
        arguments.runs,
        output_format=arguments.format,
        compare=arguments.compare,
        width=terminal_width() if arguments.output is None else None,
    )
    if arguments.output is None:
        sys.stdout.write(text)
    else:
        from hpcq.core.files import write_text

        write_text(arguments.output, text)
        print(f"Wrote {arguments.output}", file=sys.stderr)
    return 0
