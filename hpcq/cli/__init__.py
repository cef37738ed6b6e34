"""Command line: parse arguments, call one function of `hpcq.api`, print, and turn exceptions into exit codes.

Exit codes (a contract): 0 done; 1 the run has failed or incomplete units, or a gate says no; 2 the user's input; 3 the
environment; 130 interrupted. Each verb is one module of this package, and imports heavy modules only inside its `run`
function.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Sequence

from hpcq import __version__
from hpcq.cli import process_setup
from hpcq.cli.steady_output import steady_output
from hpcq.core import umask
from hpcq.core.errors import HpcqError, StorageError
from hpcq.core.files import describe_os_error
from hpcq.core.sentences import terminal_text

VERBS = ("plan", "submit", "status", "list", "logs", "resume", "cancel", "merge", "report", "stage", "init", "doctor")
STEADY_VERBS = ("submit", "resume", "cancel", "merge")
"""Verbs that change a run: a closed pipe cannot interrupt them."""
VERBS_WITH_USER_UMASK = ("stage", "report", "init")
"""Verbs that keep the user's umask, because others may read what they write: staged data, reports, profiles."""

INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line, with one sub-parser per verb."""
    parser = argparse.ArgumentParser(
        prog="hpcq",
        description="Which quantization of which model can be trusted for which tasks, and what does it cost?",
        epilog="Start with: hpcq plan manifests/quickstart.toml",
    )
    parser.add_argument("--version", action="version", version=f"hpcq {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in VERBS:
        module = importlib.import_module(f"hpcq.cli.{name}")
        summary = (module.__doc__ or name).split("\n", 1)[0].rstrip(".")
        verb = verbs.add_parser(name, help=summary[0].lower() + summary[1:], description=module.__doc__)
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments; None for those of the process, whose streams and signals are then set up, too.

    Returns:
        The exit code.
    """
    if argv is None:
        process_setup.set_up()
    try:
        code = _run(argv)
    finally:
        process_setup.flush_stdout()
    if code == INTERRUPTED and argv is None:
        process_setup.exit_at_once(code)
    return code


def _run(argv: Sequence[str] | None) -> int:
    code: int = 0
    try:
        arguments = build_parser().parse_args(argv)
        if arguments.verb not in VERBS_WITH_USER_UMASK:
            umask.make_private()
        with steady_output() if arguments.verb in STEADY_VERBS else contextlib.nullcontext():
            code = arguments.run(arguments)
        sys.stdout.flush()
    except HpcqError as error:
        print(terminal_text(str(error)), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader closed the pipe (`hpcq report … | head`): not an error, but nothing more can be written.
        return code
    except OSError as error:
        print(describe_os_error(error), file=sys.stderr)
        return StorageError.exit_code
    except KeyboardInterrupt:
        print("Interrupted. Complete results and files are kept; run the command again to continue.", file=sys.stderr)
        return INTERRUPTED
    return code
