"""Follower node: connect to rank 0, run the requested worker, report errors, exit with rank 0.

A follower does not record the attempt: rank 0 does.
"""

from __future__ import annotations

import importlib
import time
import traceback
from pathlib import Path
from threading import Thread

from hpcq.core.error_classification import classify_error, is_secondary
from hpcq.core.errors import UserInputError
from hpcq.core.failures import exit_code_for
from hpcq.core.node_context import NodeContext
from hpcq.core.work import EvaluateWork, Work
from hpcq.launch.multinode.channel import Channel
from hpcq.launch.multinode.rendezvous import RankInfo, connect, node_address
from hpcq.launch.output import error_message, exit_now, redirect_output

REPORT_GRACE_S = 10.0
"""Seconds for rank 0 to record the error and to shut this node down."""


def run_follower(rank_info: RankInfo, work: Work, logs: Path, unit: str) -> None:
    """Run this node's worker until rank 0 exits; then the process exits, too.

    Returns only if rank 0 ends before it has started the workers.

    Raises:
        ProcessDiedError: Rank 0 cannot be reached.
    """
    channel, welcome = connect(rank_info)
    log = logs / f"{unit}.{welcome['attempt']}-{rank_info.node.replace('.', '-')}.log"
    with redirect_output(log), _ReportError(channel):
        message = channel.recv()
        if message is None or "start" not in message:
            return
        Thread(target=_exit_with_rank_0, args=(channel,), daemon=True).start()
        if not isinstance(work, EvaluateWork):
            raise UserInputError(f"{unit}: {work.kind} units run on one node only.")
        join = importlib.import_module("hpcq.evaluate.worker").join
        context = NodeContext(
            nnodes=len(rank_info.nodes),
            node_rank=rank_info.rank,
            address=node_address(rank_info.node),
            **message["start"],
        )
        join(work, context, message["batch_share"])


def _exit_with_rank_0(channel: Channel) -> None:
    """Exit on the next message of rank 0 or its disconnection. The main thread may wait for a dead process."""
    channel.recv()
    exit_now(0)


class _ReportError:
    """Reports an exception of the block to rank 0, and waits while rank 0 records it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception):
            traceback.print_exception(error)
            failure = classify_error(error)
            self._channel.send(reason=error_message(error), failure=str(failure), is_secondary=is_secondary(error))
            time.sleep(REPORT_GRACE_S)
            exit_now(exit_code_for(failure))
