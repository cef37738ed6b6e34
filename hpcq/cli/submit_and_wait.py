"""Common part of `submit` and `resume`: confirm, submit, optionally wait, and print the jobs or the report."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import hpcq
from hpcq.api import Run, SubmitResult
from hpcq.cli.arguments import print_json
from hpcq.cli.formatting import status_lines, terminal_width
from hpcq.cli.progress import progress_display
from hpcq.cli.stage_display import stage_display
from hpcq.core.errors import RunIncompleteError, UserInputError
from hpcq.core.failures import Failure
from hpcq.core.work_records import UnitKind, UnitState
from hpcq.monitor.status import RunStatus
from hpcq.run.wait import wait_until_ended


def confirm(hours: Mapping[str, float], limit: float) -> bool:
    """Ask whether to submit.

    Args:
        hours: Estimated GPU-hours per GPU class.
        limit: The value of `plan.confirm_above_gpu_hours`.

    Raises:
        UserInputError: The answer was no, or the standard streams are not a terminal.
    """
    estimate = _format_gpu_hours(hours)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UserInputError(
            f"This would take {estimate}, more than plan.confirm_above_gpu_hours = {limit:g}: add --yes to submit."
        )
    print(f"{estimate}: submit? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserInputError("Nothing was submitted.")
    return True


def submit_and_wait(run: Run, *, wait: bool, as_json: bool, yes: bool, retry_failed: bool = False) -> int:
    """Submit, print the jobs at once, and print the report if the run has ended.

    Args:
        run: The run.
        wait: With Slurm, wait until the run has ended.
        as_json: Print the document of `status --json` with the submitted arrays instead of text.
        yes: Submit without confirmation.
        retry_failed: Also submit units that have failed permanently.

    Returns:
        The exit code: 1 if the run has ended with failed or missing units, else 0.
    """
    ask = (lambda _hours, _limit: True) if yes else confirm
    with progress_display() as on_status, stage_display() as reporter:
        result = run.submit(confirm=ask, retry_failed=retry_failed, on_status=on_status, reporter=reporter)
    # Outside of the display: on a terminal, rich sends what is printed meanwhile to standard error.
    if result.status.may_be_active and not as_json:
        _print_queued(result)
    status = _wait_until_ended(result) if wait else result.status
    ended = not status.may_be_active
    if as_json:
        arrays = [
            {"array": item.array, "job_id": item.job_id, "units": list(item.units)} for item in result.submissions
        ]
        print_json({**status.as_json(), "submitted": arrays})
    elif ended:
        _print_result(status, result)
    return 1 if ended and status.state is not UnitState.DONE else 0


def _wait_until_ended(result: SubmitResult) -> RunStatus:
    run = hpcq.find(result.layout.folder)
    with progress_display() as on_status:
        return wait_until_ended(result.status, lambda: run.status(patient=True), on_status)


def _print_queued(result: SubmitResult) -> None:
    for item in result.submissions:
        print(f"job {item.job_id}: {item.array}, {len(item.units)} {'unit' if len(item.units) == 1 else 'units'}")
    if result.later_units:
        print(f"{result.later_units} more units are submitted later by the merge (slurm.max_submitted_jobs).")
    elif not result.submissions:
        print("Nothing to submit: all missing units are pending or running.")
    for warning in result.status.warnings:
        print(f"warning: {warning}")
    name = result.layout.name
    print(f"\nWatch:   hpcq status {name} --watch")
    print(f"Logs:    hpcq logs {name} --follow")
    print(f"Report:  hpcq report {name}")


def _print_result(status: RunStatus, result: SubmitResult) -> None:
    """Print the report, or the state of an incomplete run and the next command."""
    if status.state is not UnitState.DONE or result.is_synthetic:
        print("\n".join(status_lines(status)))
    if result.is_synthetic:
        print("\nThe responses of this run are synthetic: it has no scores.")
    elif any(unit.kind == UnitKind.MERGE and unit.state is UnitState.DONE for unit in status.units):
        try:
            sys.stdout.write(hpcq.make_report([result.layout.folder], width=terminal_width()))
        except RunIncompleteError as error:
            print(f"\n{error}")
    if any(unit.failure is Failure.INVALID_INPUT and unit.state is UnitState.FAILED for unit in status.units):
        print("\nAfter a correction of the files or of the manifest: submit the manifest again.")
    elif status.state is not UnitState.DONE:
        print(f"\nRun the missing units again: hpcq resume {result.layout.name} --failed")


def _format_gpu_hours(hours: Mapping[str, float]) -> str:
    """Format as 'about 1,240 GPU-hours on h100 and 12 GPU-hours on a100'."""
    first, *others = (f"{_format_hours(count)} GPU-hours on {name}" for name, count in hours.items())
    return " and ".join([f"about {first}", *others])


def _format_hours(count: float) -> str:
    return f"{count:,.0f}" if count >= 10 else f"{count:.2g}"  # noqa: PLR2004 (two digits)
