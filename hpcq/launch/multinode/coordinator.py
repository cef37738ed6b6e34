"""Rank-0 coordinator of a multi-node unit: start the other nodes, collect errors, shut down.

What the nodes compute together is the back end's business.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType

from hpcq.core.attempts import Attempt
from hpcq.core.errors import ProcessDiedError
from hpcq.core.failures import Failure, classify_error, is_secondary
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

    One thread per node receives its messages. The methods are for the main thread.

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
        self._token = secrets.token_hex(16)
        self._channels: dict[int, Channel] = {}
        self._failures: list[ProcessDiedError] = []
        self._condition = threading.Condition()
        self._shutdown_lock = threading.Lock()
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
            publish_endpoint(rank_info, address=self._address, port=server.getsockname()[1], token=self._token)
            while len(self._channels) < len(rank_info.nodes) - 1:
                if time.monotonic() > deadline_s:
                    raise self._missing_nodes_error()
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                threading.Thread(target=self._serve, args=(Channel(connection),), daemon=True).start()

    def _missing_nodes_error(self) -> ProcessDiedError:
        present = {self._rank_info.nodes[rank] for rank in self._channels}
        absent = [node for node in self._rank_info.nodes[1:] if node not in present]
        problems = [
            f"{node} has started but cannot connect to {self._rank_info.node} at {self._address}"
            if self._rank_info.presence_file(node).exists()
            else f"no process on {node} has reported"
            for node in absent
        ]
        within = f"within {self._rank_info.timeout_s:g} s"
        return ProcessDiedError(f"{'; '.join(problems)} {within}.", failure=Failure.NODE_FAULT, node=absent[0])

    def _serve(self, channel: Channel) -> None:
        """Receive the messages of one node until it disconnects (one thread per node)."""
        hello = channel.recv(HANDSHAKE_TIMEOUT_S)
        if hello is None or not hmac.compare_digest(str(hello.get("token")), self._token):
            channel.close()
            return
        rank, node = int(hello["rank"]), str(hello["node"])
        with self._condition:
            self._channels[rank] = channel
        channel.send(attempt=self._attempt.record.attempt)
        report = channel.recv()
        if self._is_shut_down or self._channels[rank] is not channel:
            return
        if report is not None:
            failure = ProcessDiedError(f"{node}: {report['reason']}", failure=report["failure"], node=node)
        elif channel.is_unreachable:
            failure = ProcessDiedError(f"{node} no longer responds.", failure=Failure.NODE_FAULT, node=node)
        else:
            failure = ProcessDiedError(
                f"{node}: worker process exited without reporting a reason.", failure=Failure.KILLED, node=node
            )
        with self._condition:
            self._failures.append(failure)
            is_first = len(self._failures) == 1
            self._condition.notify_all()
        if is_first:
            time.sleep(ROOT_CAUSE_TIMEOUT_S)
            with self._shutdown_lock:
                if not self._is_shut_down:
                    self._on_failure(min(self._failures, key=_cause_priority))

    def _root_cause(self, error: Exception) -> Exception:
        """Return the root cause among all failures: this node's error may be a consequence of another node's."""
        if _cause_priority(error):
            with self._condition:
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
        for channel in self._channels.values():
            channel.send(
                start={"master_addr": context.master_addr, "master_port": context.master_port},
                batch_share=self._attempt.batch_share,
            )
        return context

    def _shut_down(self) -> None:
        with self._shutdown_lock:
            self._is_shut_down = True
        for channel in self._channels.values():
            channel.send(end=True)
        shutil.rmtree(self._rank_info.folder, ignore_errors=True)


def _cause_priority(error: Exception) -> int:
    """Return 0 for a root cause, 1 for a possible root cause, 2 for a consequence of another process's exit."""
    if is_secondary(error):
        return 2
    return int(classify_error(error) is Failure.BUG)
