"""Print the scores of one or more runs as a table, or as Markdown, CSV, LaTeX, HTML or JSON; or export them."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hpcq.cli.process_setup import use_one_thread
from hpcq.core.errors import UserInputError
from hpcq.core.sentences import terminal_text

if TYPE_CHECKING:
    from hpcq.report.gate import GateResult

GATE_SAYS_NO = 1
"""Exit code of a gate that fails or cannot tell."""

FORMATS = ("text", "md", "csv", "latex", "html", "json")
EXPORTS = ("lm-eval", "inspect", "eee")
"""Formats of several files, which need --output DIR."""

FIGURE_FORMATS = ("svg", "pdf", "png")
"""Values of `hpcq.report.page.figures.FigureFormat`, which is not imported to parse arguments."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `hpcq report`."""
    parser.add_argument("runs", metavar="RUN", nargs="*", help="names or folders of runs, or their manifests")
    parser.add_argument(
        "--format",
        choices=(*FORMATS, *EXPORTS),
        default="text",
        help="output format (default: text); lm-eval, inspect and eee need --output DIR",
    )
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="same as --format json")
    parser.add_argument(
        "--compare",
        metavar="STUDY",
        help="add the published scores of STUDY, or of all studies in the catalog ('published')",
    )
    parser.add_argument(
        "--margin",
        metavar="POINTS",
        type=_positive_number,
        help="largest difference that counts as equivalent, percentage points (default: the manifest's, 1)",
    )
    parser.add_argument(
        "--claims",
        metavar="STUDY|FILE",
        help="evaluate the claims of STUDY, of all studies in the catalog ('published'), or of a TOML file; without"
        " RUN, on the published tables (docs/claims.md)",
    )
    parser.add_argument(
        "--gate",
        metavar="POLICY",
        type=Path,
        help="TOML file with the largest losses that pass: exit code 0 if all variants pass, else 1 (docs/gate.md)",
    )
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="also list which share of the prompts was cut to fit the model, and which items, by variant and task",
    )
    parser.add_argument("--figures", metavar="DIR", type=Path, help="also write the plots as files to DIR")
    parser.add_argument(
        "--figure-formats",
        metavar="FORMATS",
        type=_figure_formats,
        help="formats of these files: svg, pdf, png, separated by commas (default: svg; the others need hpcq[figures])",
    )
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="write to FILE instead of standard output; a folder for exports"
    )


def _positive_number(text: str) -> float:
    """Parse a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _figure_formats(text: str) -> tuple[str, ...]:
    """Parse names of formats, separated by commas."""
    names = tuple(name.strip().lower() for name in text.split(","))
    unknown = [name for name in names if name not in FIGURE_FORMATS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(FIGURE_FORMATS)}")
    return names


def run(arguments: argparse.Namespace) -> int:
    """Write the report."""
    use_one_thread()
    import hpcq
    from hpcq.cli.formatting import terminal_width

    width = terminal_width() if arguments.output is None else None
    if arguments.format in EXPORTS and arguments.output is None:
        raise UserInputError(f"--format {arguments.format} writes several files: add --output DIR.")
    if arguments.figure_formats and arguments.figures is None:
        raise UserInputError("--figure-formats are those of the plots as files: add --figures DIR.")
    if arguments.verbose and (arguments.format != "text" or not arguments.runs):
        raise UserInputError("--verbose adds lines to the text of a run: name a run, and remove --format.")
    if not arguments.runs:
        needs_runs = arguments.gate or arguments.figures or arguments.format in EXPORTS
        if arguments.claims is None or needs_runs:
            raise UserInputError("hpcq report: name a run, or use --claims to evaluate claims on published tables.")
        _write(
            hpcq.make_report([], output_format=arguments.format, claims=arguments.claims, width=width), arguments.output
        )
        return 0
    from hpcq.report.formats import FORMATTERS

    report = hpcq.build_report(
        arguments.runs,
        compare=arguments.compare,
        margin_points=arguments.margin,
        claims=arguments.claims,
        width=width,
        gate=arguments.gate,
    )
    if arguments.figures is not None:
        from hpcq.report.formats import page_content
        from hpcq.report.page.figures import FigureFormat, write_figures

        formats = [FigureFormat(name) for name in arguments.figure_formats or ("svg",)]
        names = write_figures(arguments.figures, page_content(report), formats)
        print(f"Wrote {', '.join(names)} in {arguments.figures}", file=sys.stderr)
    if arguments.format in EXPORTS:
        written = hpcq.export(arguments.runs, arguments.output, output_format=arguments.format)
        print(f"Wrote {len(written)} files in {arguments.output}", file=sys.stderr)
    else:
        _write(FORMATTERS[arguments.format](report) + _details(arguments), arguments.output)
    return 0 if report.gate is None else _gate_exit_code(report.gate, arguments)


def _details(arguments: argparse.Namespace) -> str:
    """Return what --verbose adds."""
    if not arguments.verbose:
        return ""
    import hpcq
    from hpcq.report.cut_prompts import cut_prompts_text

    return f"\n{cut_prompts_text(hpcq.cut_prompts(arguments.runs))}"


def _write(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text)
        return
    from hpcq.core.files import write_text

    write_text(output, text)
    print(f"Wrote {output}", file=sys.stderr)


def _gate_exit_code(gate: GateResult, arguments: argparse.Namespace) -> int:
    """Return the exit code; print the summary unless the report that was printed has it."""
    from hpcq.report.gate import GateVerdict

    if arguments.output is not None or arguments.format not in ("text", "md"):
        print(terminal_text(gate.summary), file=sys.stderr)
    return 0 if gate.verdict is GateVerdict.PASS else GATE_SAYS_NO
