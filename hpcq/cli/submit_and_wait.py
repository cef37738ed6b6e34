"""What `submit` and `resume` share: hand over, tell what was done, wait if asked to, and end with the report."""

from __future__ import annotations

import sys
import time

from hpcq import api
from hpcq.cli.arguments import print_json
from hpcq.cli.formatting import status_lines
from hpcq.cli.progress import watching
from hpcq.core.errors import RunIncomplete
from hpcq.core.work import Kind, State
from hpcq.monitor.snapshot import LIVE, RunStatus

WAIT_INTERVAL_S = 2.0


def hand_over(opened: api.Opened, *, wait: bool, as_json: bool, retry_failed: bool = False) -> int:
    """Submit and print; exit code 1 if the run has ended with failed or missing units."""
    with watching() as watch:
        handed = api.hand_over(opened, retry_failed=retry_failed, watch=watch)
        status = handed.status
        while wait and status.state in LIVE:
            time.sleep(WAIT_INTERVAL_S)
            status = api.status(str(opened.layout.folder))
            watch(status)
    ended = status.state not in LIVE
    if as_json:
        submitted = [
            {"array": item.array, "job_id": item.job_id, "units": list(item.units)} for item in handed.submissions
        ]
        print_json({**status.as_json(), "submitted": submitted})
    elif ended:
        _print_end(status, opened)
    else:
        _print_queued(handed, opened)
    return 1 if ended and status.state is not State.DONE else 0


def _print_queued(handed: api.Handed, opened: api.Opened) -> None:
    for item in handed.submissions:
        print(f"job {item.job_id}: {item.array}, {len(item.units)} {'unit' if len(item.units) == 1 else 'units'}")
    if not handed.submissions:
        print("Nothing to hand over: what is missing waits or runs already.")
    name = opened.layout.name
    print(f"\nWatch it:    hpcq status {name} --watch")
    print(f"Read logs:   hpcq logs {name} --follow")
    print(f"The result:  hpcq report {name}")


def _print_end(status: RunStatus, opened: api.Opened) -> None:
    """The report, or what stands in its way and what to type next."""
    if status.state is not State.DONE or opened.is_rehearsal:
        print("\n".join(status_lines(status)))
    if opened.is_rehearsal:
        print("\nThis was a rehearsal: its responses are synthetic, and never scores.")
    elif any(unit.kind == Kind.MERGE and unit.state is State.DONE for unit in status.units):
        try:
            sys.stdout.write(api.report([str(opened.layout.folder)]))
        except RunIncomplete as nothing:
            print(f"\n{nothing}")
    if status.state is not State.DONE:
        print(f"\nTry again what is missing: hpcq resume {opened.layout.name} --failed")
