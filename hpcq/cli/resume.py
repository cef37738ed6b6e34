"""Hand over again what a run still lacks, and only that.

Units that failed are left alone unless --failed is given; units that still wait or run are never doubled. What cannot
change a result may be changed on the way, and stays so: -O evaluate.shards=7 deals what is missing to seven jobs,
-O cluster.profile=FILE goes on elsewhere.
"""

from __future__ import annotations

import argparse

from hpcq.cli.arguments import add_json, add_overrides, add_run, add_yes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, -O, --failed, --wait, --yes, --json."""
    add_run(parser)
    add_overrides(parser)
    add_json(parser)
    add_yes(parser)
    parser.add_argument("--failed", action="store_true", help="try again what has failed, too")
    parser.add_argument("--wait", action="store_true", help="on Slurm: return when the run has ended")


def run(arguments: argparse.Namespace) -> int:
    """Resume and print as submit does."""
    from hpcq import api
    from hpcq.cli.confirm import confirm
    from hpcq.cli.submit_and_wait import hand_over

    opened = api.open_run(arguments.run_name, arguments.overrides)
    confirm(opened, yes=arguments.yes, retry_failed=arguments.failed)
    return hand_over(opened, wait=arguments.wait, as_json=arguments.json, retry_failed=arguments.failed)
