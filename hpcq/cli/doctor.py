"""Check this machine, the cluster and the inputs of a manifest: what works, what does not, and how to correct it.

Without MANIFEST it checks this machine and its cluster. It submits and downloads nothing.
Exit code 2: the manifest is invalid; 3: something else fails.
"""

from __future__ import annotations

import argparse

from hpcq.cli.arguments import add_json, add_overrides, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MANIFEST, -O and --json."""
    parser.add_argument("manifest", metavar="MANIFEST", nargs="?", help="a TOML manifest whose run is checked, too")
    add_overrides(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print a line per check as soon as it has ended, then the number of failures."""
    import hpcq
    from hpcq.cli.formatting import finding_lines
    from hpcq.core.errors import SetupError, UserInputError
    from hpcq.doctor.finding import MANIFEST, Level

    findings = []
    for finding in hpcq.diagnose(arguments.manifest, arguments.overrides):
        findings.append(finding)
        if not arguments.json:
            print("\n".join(finding_lines(finding)), flush=True)
    failures = sum(one.level is Level.FAIL for one in findings)
    warnings = sum(one.level is Level.WARNING for one in findings)
    if arguments.json:
        print_json({"schema": 1, "failures": failures, "findings": [one.as_json() for one in findings]})
    else:
        print(f"{len(findings)} checks: {failures} failed, {warnings} with a warning.")
    if any(one.level is Level.FAIL and one.section == MANIFEST for one in findings):
        return UserInputError.exit_code
    return SetupError.exit_code if failures else 0
