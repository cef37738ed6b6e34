"""The command line: parses, calls one function of `hpcq.api`, prints, and turns exceptions into exit codes.

Exit codes (a contract): 0 done; 1 the run has failed or incomplete units; 2 the user's input; 3 the environment; 130
interrupted. Every verb is one file beside this one; none imports anything heavy before its own `run`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from hpcq import __version__
from hpcq.errors import HpcqError, StorageFault
from hpcq.files import describe_os_error

VERBS = ("plan", "submit", "status", "logs", "resume", "cancel", "merge", "report", "stage")
INTERRUPTED = 130


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
    """Run one command and return its exit code."""
    try:
        arguments = build_parser().parse_args(argv)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except HpcqError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output left (`hpcq report … | head`): nothing is wrong, and nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(describe_os_error(error), file=sys.stderr)
        return StorageFault.exit_code
    except KeyboardInterrupt:
        print("Interrupted. What was committed is kept: type the command again to go on.", file=sys.stderr)
        return INTERRUPTED
    return code
