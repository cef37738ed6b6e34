"""The command line: parses, calls one function of `hpcq.api`, prints, and turns exceptions into exit codes.

Exit codes (a contract): 0 done; 1 the run has failed or incomplete units; 2 the user's input; 3 the environment; 130
interrupted. Every verb is one file beside this one; none imports anything heavy before its own `run`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence

from hpcq import __version__
from hpcq.cli import process_setup
from hpcq.core.errors import HpcqError, StorageError
from hpcq.core.files import describe_os_error

VERBS = ("plan", "submit", "status", "logs", "resume", "cancel", "merge", "report", "stage", "init")
WRITERS = ("submit", "resume", "merge")
"""The verbs that write runs."""
SHARERS = ("stage", "report", "init")
"""The verbs that write for others, too, as the user's umask says: what is staged, a report's file, a profile."""

INTERRUPTED = 130
PRIVATE_UMASK = 0o077


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, one sub-parser a verb."""
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
    """Run one command and return its exit code. Without `argv`, as the process's own: streams and signals, too."""
    if argv is None:
        process_setup.enter()
    try:
        return _run(argv)
    finally:
        process_setup.leave()


def _run(argv: Sequence[str] | None) -> int:
    code = 0
    try:
        arguments = build_parser().parse_args(argv)
        if arguments.verb not in SHARERS:
            os.umask(PRIVATE_UMASK)
        code = _write(arguments) if arguments.verb in WRITERS else arguments.run(arguments)
        sys.stdout.flush()
    except HpcqError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output left (`hpcq report … | head`): nothing is wrong, and nothing more can be written.
        return code
    except OSError as error:
        print(describe_os_error(error), file=sys.stderr)
        return StorageError.exit_code
    except KeyboardInterrupt:
        print("Interrupted. What was committed is kept: type the command again to go on.", file=sys.stderr)
        return INTERRUPTED
    return code


def _write(arguments: argparse.Namespace) -> int:
    """Run a verb that writes, to its exit code even if nobody reads what it prints."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            code: int = arguments.run(arguments)
        return code
    finally:
        with contextlib.suppress(BrokenPipeError):
            print(said.getvalue(), end="", flush=True)
