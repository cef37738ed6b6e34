"""Rank-0 coordinator of a multi-node unit: wait for the other nodes, start them, collect their errors, shut down.

The backend determines what the nodes compute together.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from hpcq.core.attempts import Attempt
from hpcq.core.error_classification import classify_error, is_secondary
from hpcq.core.errors import ProcessDiedError
from hpcq.core.failures import Failure
from hpcq.core.node_context import NodeContext
from hpcq.launch.multinode.channel import Channel
from hpcq.launch.multinode.rendezvous import (
    HANDSHAKE_TIMEOUT_S,
    POLL_INTERVAL_S,
    RankInfo,
    free_port,
    listen,
    node_address,
    publish_endpoint,
)

ROOT_CAUSE_TIMEOUT_S = 5.0
"""Seconds to wait for a root-cause report after the first failure (other failures are usually consequences)."""


class Coordinator:
    """Context manager for the unit's other nodes. In the `with` block all of them are connected to this node.

    One thread per connection receives its messages and closes it. What the threads share is read and changed under one
    condition. The methods are for the main thread.

    Args:
        rank_info: Rank 0.
        attempt: Its `start_followers` is set.
        on_failure: Called from another thread with the root cause if another node fails before the block ends.
    """

    def __init__(self, rank_info: RankInfo, attempt: Attempt, on_failure: Callable[[Exception], None]) -> None:
        self._rank_info = rank_info
        self._attempt = attempt
        self._on_failure = on_failure
        self._address = node_address(rank_info.node)
        self._key = secrets.token_hex(16)
        self._condition = threading.Condition()
        # Under the condition:
        self._channels: dict[int, Channel] = {}
        self._failures: list[ProcessDiedError] = []
        self._is_reporting = False
        self._is_shut_down = False

    def __enter__(self) -> None:
        with contextlib.ExitStack() as undo:
            undo.callback(self._shut_down)
            self._accept_all()
            undo.pop_all()
        self._attempt.start_followers = self._start_followers

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        cause = self._root_cause(error) if isinstance(error, Exception) else None
        self._shut_down()
        if error is not None and cause is not None and cause is not error:
            # Printed and not chained: the failure class is also derived from an exception's causes.
            traceback.print_exception(error)
            raise cause from None

    def _accept_all(self) -> None:
        rank_info = self._rank_info
        deadline_s = time.monotonic() + rank_info.timeout_s
        self._attempt.update(phase="waiting for the other nodes")
        with listen(self._address) as server:
            server.settimeout(POLL_INTERVAL_S)
            publish_endpoint(rank_info, address=self._address, port=server.getsockname()[1], key=self._key)
            while True:
                # The clock first: a node that connects between the two has arrived in time.
                is_late = time.monotonic() > deadline_s
                absent = self._absent_nodes()
                if not absent:
                    return
                if is_late:
                    raise self._missing_nodes_error(absent)
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                threading.Thread(target=self._serve, args=(Channel(connection),), daemon=True).start()

    def _absent_nodes(self) -> list[str]:
        with self._condition:
            return [node for rank, node in enumerate(self._rank_info.nodes) if rank and rank not in self._channels]

    def _missing_nodes_error(self, absent: Sequence[str]) -> ProcessDiedError:
        problems = [
            f"{node} has started but cannot connect to {self._rank_info.node} at {self._address}"
            if self._rank_info.presence_file(node).exists()
            else f"no process on {node} has reported"
            for node in absent
        ]
        within = f"within {self._rank_info.timeout_s:g} s"
        return ProcessDiedError(f"{'; '.join(problems)} {within}.", failure=Failure.NODE_FAULT, node=absent[0])

    def _serve(self, channel: Channel) -> None:
        """Serve one connection, until it fails and this node is shut down (one thread per connection)."""
        try:
            if not channel.accept(self._key.encode(), HANDSHAKE_TIMEOUT_S):
                return
            hello = channel.recv(HANDSHAKE_TIMEOUT_S)
            if hello is None or not self._register(int(hello["rank"]), channel):
                return
            report = channel.recv()
            self._handle_end(int(hello["rank"]), channel, _failure_of(str(hello["node"]), report, channel))
            with self._condition:  # a node exits when its connection is closed
                self._condition.wait_for(lambda: self._is_shut_down)
        finally:
            channel.close()

    def _register(self, rank: int, channel: Channel) -> bool:
        """Welcome a node, before any other message; return False if the coordinator no longer accepts nodes."""
        with self._condition:
            if self._is_shut_down:
                return False
            channel.send(attempt=self._attempt.record.attempt)
            self._channels[rank] = channel
            return True

    def _handle_end(self, rank: int, channel: Channel, failure: ProcessDiedError) -> None:
        """Record that a node has failed. The first to do so reports the root cause, unless the block ends before."""
        with self._condition:
            if self._is_shut_down or self._channels[rank] is not channel:
                return
            self._failures.append(failure)
            self._condition.notify_all()
            if len(self._failures) > 1:
                return
            self._condition.wait_for(lambda: self._is_shut_down, ROOT_CAUSE_TIMEOUT_S)
            if self._is_shut_down:
                return
            self._is_reporting = True
            cause = min(self._failures, key=_cause_priority)
        try:
            self._on_failure(cause)
        finally:
            with self._condition:
                self._is_reporting = False
                self._condition.notify_all()

    def _root_cause(self, error: Exception) -> Exception:
        """Return the root cause among all failures: this node's error may be a consequence of another node's."""
        with self._condition:
            if _cause_priority(error):
                self._condition.wait_for(
                    lambda: any(not _cause_priority(failure) for failure in self._failures), ROOT_CAUSE_TIMEOUT_S
                )
            return min([error, *self._failures], key=_cause_priority)

    def _start_followers(self) -> NodeContext:
        """Start the worker on all other nodes, and return the node context of this one."""
        context = NodeContext(
            nnodes=len(self._rank_info.nodes),
            node_rank=0,
            address=self._address,
            master_addr=self._address,
            master_port=free_port(),
        )
        sys.stdout.write(
            f"{', '.join(self._rank_info.nodes)}: engine rendezvous at {context.master_addr}:{context.master_port}\n"
        )
        sys.stdout.flush()
        for channel in self._connected():
            channel.send(
                start={"master_addr": context.master_addr, "master_port": context.master_port},
                batch_share=self._attempt.batch_share,
            )
        return context

    def _connected(self) -> list[Channel]:
        with self._condition:
            return list(self._channels.values())

    def _shut_down(self) -> None:
        """End all nodes. If another thread is reporting a failure, which ends the process, wait for it."""
        with self._condition:
            self._condition.wait_for(lambda: not self._is_reporting)
            self._is_shut_down = True
            self._condition.notify_all()
        for channel in self._connected():
            channel.send(end=True)
        shutil.rmtree(self._rank_info.folder, ignore_errors=True)


def _failure_of(node: str, report: Mapping[str, Any] | None, channel: Channel) -> ProcessDiedError:
    """Return the failure of a node: the one that it has reported, or the way in which its connection has ended."""
    if report is not None:
        return ProcessDiedError(
            f"{node}: {report['reason']}",
            failure=report["failure"],
            node=node,
            is_secondary=report["is_secondary"],
        )
    if channel.is_unreachable:
        return ProcessDiedError(f"{node} no longer responds.", failure=Failure.NODE_FAULT, node=node)
    return ProcessDiedError(
        f"{node}: worker process exited without reporting a reason.", failure=Failure.KILLED, node=node
    )


def _cause_priority(error: Exception) -> int:
    """Return 0 for a root cause, 1 for a possible root cause, 2 for a consequence of another process's exit."""
    if is_secondary(error):
        return 2
    return int(classify_error(error) is Failure.BUG)
