"""Fault campaign: submit runs to a virtual Slurm cluster, inject random faults, and check the results.

Exit code 1 if data is lost or differs, a run hangs, a command prints a traceback, or too much work is repeated.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from tests.faults.campaign import STALL_TIMEOUT_S, Campaign, set_environment
from tests.faults.fault_kinds.table import FAULT_KINDS
from tests.slurm.cluster import missing_daemons

_NO_LIMIT_MIN = 60 * 24 * 365.0


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, help="duration (default: 10, or no limit if --faults is set)")
    parser.add_argument("--faults", type=int, help="maximum number of faults")
    parser.add_argument("--seed", type=int, help="seed of all random choices (default: random, printed)")
    parser.add_argument(
        "--models", type=float, default=0.0, metavar="SHARE", help="share of trials with the real model (default: 0)"
    )
    parser.add_argument(
        "--kinds", nargs="+", choices=FAULT_KINDS, default=list(FAULT_KINDS), metavar="KIND", help="only these faults"
    )
    parser.add_argument(
        "--stall-timeout",
        type=float,
        default=STALL_TIMEOUT_S,
        metavar="SECONDS",
        help="time without progress after which a run is considered hung (default: %(default)g)",
    )
    parser.add_argument("--folder", type=Path, help="folder of all files (default: a new temporary folder)")
    arguments = parser.parse_args()
    # Exit by an exception, as with Ctrl-C, so that the cluster is stopped and files are removed.
    signal.signal(signal.SIGTERM, _exit_on_signal)
    set_environment()
    if missing := missing_daemons():
        parser.error(f"missing commands: {', '.join(missing)}. On Debian: apt-get install slurm-wlm munge")
    seed = arguments.seed if arguments.seed is not None else int.from_bytes(os.urandom(3))
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="hpcq-faults-"))
    minutes = arguments.minutes or (_NO_LIMIT_MIN if arguments.faults else 10.0)
    sys.stdout.write(f"seed {seed}, log {folder / 'campaign.jsonl'}\n")
    started_s = time.monotonic()
    campaign = Campaign(
        seed=seed,
        folder=folder,
        seconds=60 * minutes,
        faults=arguments.faults,
        models=arguments.models,
        stall_timeout_s=arguments.stall_timeout,
        kinds=arguments.kinds,
    )
    try:
        campaign.run()
    finally:
        sys.stdout.write(campaign.summary.text(seed=seed, seconds=time.monotonic() - started_s))
        for reference in folder.glob("reference-*"):
            shutil.rmtree(reference)
    return 1 if campaign.summary.violations else 0


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
