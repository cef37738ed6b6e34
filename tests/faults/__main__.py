"""`python -m tests.faults`: runs a campaign of faults for as long as you like, and says what it found.

Knows the options. Exit code 1 if anything was lost, disputed, hung, shown with a traceback, or done twice too often.
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

from tests.faults.campaign import PATIENCE_S, Campaign, set_environment
from tests.faults.kinds import KINDS
from tests.slurm.cluster import missing_daemons

_A_LONG_TIME_MIN = 60 * 24 * 365.0


def main() -> int:
    """Parse, play, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, help="end when so much time has passed (default: 10, if no --faults)")
    parser.add_argument("--faults", type=int, help="end after so many faults")
    parser.add_argument("--seed", type=int, help="what decides all that is drawn (default: drawn, and told)")
    parser.add_argument(
        "--models", type=float, default=0.0, metavar="SHARE", help="share of rounds with the real model"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help="these only")
    parser.add_argument("--patience", type=float, default=PATIENCE_S, help="seconds without a move until a run hangs")
    parser.add_argument("--folder", type=Path, help="where everything lies (default: a new temporary one)")
    arguments = parser.parse_args()
    # So that everything is stopped and removed on the way out, as with Ctrl-C.
    signal.signal(signal.SIGTERM, _leave)
    set_environment()
    if missing := missing_daemons():
        parser.error(f"there is no {', '.join(missing)} on this machine: on Debian, apt-get install slurm-wlm munge")
    seed = arguments.seed if arguments.seed is not None else int.from_bytes(os.urandom(3))
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="hpcq-faults-"))
    minutes = arguments.minutes or (_A_LONG_TIME_MIN if arguments.faults else 10.0)
    sys.stdout.write(f"seed {seed}, log {folder / 'campaign.jsonl'}\n")
    began_s = time.monotonic()
    campaign = Campaign(
        seed=seed,
        folder=folder,
        seconds=60 * minutes,
        faults=arguments.faults,
        models=arguments.models,
        patience_s=arguments.patience,
        kinds=arguments.kinds,
    )
    try:
        campaign.run()
    finally:
        sys.stdout.write(campaign.tally.text(seed=seed, seconds=time.monotonic() - began_s))
        for kept in folder.glob("undisturbed-*"):
            shutil.rmtree(kept)
    return 1 if campaign.tally.violations else 0


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
