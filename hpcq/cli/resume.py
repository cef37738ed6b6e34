"""Submit the missing units of a run.

Units that have failed permanently are skipped unless --failed is given. Pending and running units are never submitted
twice. Settings that cannot change a result can be overridden, and are kept for later commands:
-O evaluate.shards=7 distributes the missing requests over seven jobs, -O cluster.profile=FILE continues on another
cluster.
"""

from __future__ import annotations

import argparse

from hpcq.cli.arguments import add_json, add_overrides, add_run, add_yes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add RUN, -O, --failed, --wait, --yes and --json."""
    add_run(parser)
    add_overrides(parser, "override a key that cannot change a result, e.g. -O evaluate.shards=7 (repeatable)")
    add_json(parser)
    add_yes(parser)
    parser.add_argument("--failed", action="store_true", help="also submit units that have failed permanently")
    parser.add_argument("--wait", action="store_true", help="with Slurm: do not return until the run has ended")


def run(arguments: argparse.Namespace) -> int:
    """Submit the missing units; the output is that of `submit`."""
    import hpcq
    from hpcq.cli.submit_and_wait import submit_and_wait

    return submit_and_wait(
        hpcq.find(arguments.run_name, arguments.overrides),
        wait=arguments.wait,
        as_json=arguments.json,
        yes=arguments.yes,
        retry_failed=arguments.failed,
    )
