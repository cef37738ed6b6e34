"""The question before much is handed over: on a terminal it is asked, in a pipe it is a refusal that names --yes.

Knows what a submission would take; must not know how it was reckoned.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from hpcq import api
from hpcq.core.errors import UserInputError


def confirm(opened: api.Opened, *, yes: bool, retry_failed: bool = False) -> None:
    """Ask where what is to be handed over is above the manifest's `plan.confirm_above_gpu_hours`; nothing without it.

    Raises:
        UserInputError: nobody can be asked, or the answer was no.
    """
    bound = opened.resolved.manifest.plan.confirm_above_gpu_hours
    if bound is None or yes:
        return
    hours = api.gpu_hours_to_hand_over(opened, retry_failed=retry_failed)
    if sum(hours.values()) <= bound:
        return
    told = _told(hours)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UserInputError(
            f"This would take {told}, more than plan.confirm_above_gpu_hours = {bound:g}: add --yes to hand it over."
        )
    print(f"{told}: go on? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserInputError("Nothing was handed over.")


def _told(hours: Mapping[str, float]) -> str:
    """'about 1,240 GPU-hours on h100 and 12 GPU-hours on a100'."""
    first, *others = (f"{_rounded(count)} GPU-hours on {name}" for name, count in hours.items())
    return " and ".join([f"about {first}", *others])


def _rounded(count: float) -> str:
    return f"{count:,.0f}" if count >= 10 else f"{count:.2g}"  # noqa: PLR2004 (two digits)
