"""Waiting for the end of a run: ask Slurm every few seconds, and less often while it does not respond."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from hpcq.monitor.status import RunStatus

_LOG = logging.getLogger(__name__)

INTERVAL_S, LONGEST_INTERVAL_S = 2.0, 60.0


def wait_until_ended(
    status: RunStatus, query: Callable[[], RunStatus], on_status: Callable[[RunStatus], None] | None = None
) -> RunStatus:
    """Return the status of the run when it has ended.

    Args:
        status: The last known status.
        query: Returns the current one.
        on_status: Called with each new status.
    """
    pause_s = INTERVAL_S
    while status.may_be_active:
        time.sleep(pause_s)
        before, status = status, query()
        pause_s = min(2 * pause_s, LONGEST_INTERVAL_S) if status.slurm_error else INTERVAL_S
        if status.slurm_error and not before.slurm_error:
            _LOG.warning("%s Waiting until it does.", status.slurm_error)
        if on_status:
            on_status(status)
    return status
