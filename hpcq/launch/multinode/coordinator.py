"""What node 0 of a unit has to do with the others: lets them in, has them start, hears how they end, dismisses them.

Knows lines and attempts. Must not know engines: what the nodes do together is their back end's.
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
from hpcq.core.errors import ProcessEnded
from hpcq.core.failures import Failure, failure_of, is_echo
from hpcq.core.node_rank import Place
from hpcq.launch.multinode.channel import Line
from hpcq.launch.multinode.rendezvous import HELLO_S, POLL_INTERVAL_S, Seat, address_of, free_port, listen, publish_head

PATIENCE_S = 5.0
"""When one process has ended, others end by it: so long the one that knows why may take to say so."""


class Company:
    """The unit's other nodes. In the `with` block all of them are there, each with a line to this one.

    Args:
        seat: node 0's.
        attempt: gets its `gather`.
        failed: called in another thread with the reason, when another node has ended before the block.
    """

    def __init__(self, seat: Seat, attempt: Attempt, failed: Callable[[Exception], None]) -> None:
        self._seat = seat
        self._attempt = attempt
        self._failed = failed
        self._address = address_of(seat.node)
        self._token = secrets.token_hex(16)
        self._lines: dict[int, Line] = {}
        self._ended: list[ProcessEnded] = []
        self._changed = threading.Condition()
        self._judging = threading.Lock()
        self._is_over = False

    def __enter__(self) -> None:
        with contextlib.ExitStack() as undo:
            undo.callback(self._dismiss)
            self._let_in()
            undo.pop_all()
        self._attempt.gather = self._gather

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        reason = self._reason(error) if isinstance(error, Exception) else None
        self._dismiss()
        if error is not None and reason is not None and reason is not error:
            # Put aside, not its cause: it would be asked for the failure's class.
            traceback.print_exception(error)
            raise reason from None

    def _let_in(self) -> None:
        seat = self._seat
        deadline_s = time.monotonic() + seat.deadline_s
        self._attempt.update(phase="waiting for the other nodes")
        with listen(self._address) as server:
            server.settimeout(POLL_INTERVAL_S)
            publish_head(seat, address=self._address, port=server.getsockname()[1], token=self._token)
            while len(self._lines) < len(seat.nodes) - 1:
                if time.monotonic() > deadline_s:
                    raise self._missing()
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                threading.Thread(target=self._attend, args=(Line(connection),), daemon=True).start()

    def _missing(self) -> ProcessEnded:
        present = {self._seat.nodes[rank] for rank in self._lines}
        absent = [node for node in self._seat.nodes[1:] if node not in present]
        told = [
            f"{node} has begun and cannot reach {self._seat.node} at {self._address}"
            if self._seat.card(node).exists()
            else f"nothing was heard of a process on {node}"
            for node in absent
        ]
        within = f"within {self._seat.deadline_s:g} s"
        return ProcessEnded(f"{'; '.join(told)} {within}.", failure=Failure.NODE_FAULT, node=absent[0])

    def _attend(self, line: Line) -> None:
        """Hear one node from its first word to its last."""
        hello = line.hear(HELLO_S)
        if hello is None or not hmac.compare_digest(str(hello.get("token")), self._token):
            line.close()
            return
        rank, node = int(hello["rank"]), str(hello["node"])
        with self._changed:
            self._lines[rank] = line
        line.send(attempt=self._attempt.record.attempt)
        said = line.hear()
        if self._is_over or self._lines[rank] is not line:
            return
        if said is not None:
            end = ProcessEnded(f"{node}: {said['reason']}", failure=said["failure"], node=node)
        elif line.is_silent:
            end = ProcessEnded(f"{node} does not answer any more.", failure=Failure.NODE_FAULT, node=node)
        else:
            end = ProcessEnded(f"{node}: its process ended without a word.", failure=Failure.KILLED, node=node)
        with self._changed:
            self._ended.append(end)
            is_first = len(self._ended) == 1
            self._changed.notify_all()
        if is_first:
            time.sleep(PATIENCE_S)
            with self._judging:
                if not self._is_over:
                    self._failed(min(self._ended, key=_rank_of_reason))

    def _reason(self, error: Exception) -> Exception:
        """Why the unit ends, of all that ended with it: this node's error may be no more than another's echo."""
        if _rank_of_reason(error):
            with self._changed:
                self._changed.wait_for(lambda: any(not _rank_of_reason(end) for end in self._ended), PATIENCE_S)
        return min([error, *self._ended], key=_rank_of_reason)

    def _gather(self) -> Place:
        """Have every node start what this one is about to start."""
        place = Place(nodes=len(self._seat.nodes), rank=0, address=self._address, head=self._address, port=free_port())
        sys.stdout.write(f"{', '.join(self._seat.nodes)} meet at {place.head}:{place.port}\n")
        sys.stdout.flush()
        for line in self._lines.values():
            line.send(start={"head": place.head, "port": place.port}, batch_share=self._attempt.batch_share)
        return place

    def _dismiss(self) -> None:
        with self._judging:
            self._is_over = True
        for line in self._lines.values():
            line.send(end=True)
        shutil.rmtree(self._seat.folder, ignore_errors=True)


def _rank_of_reason(error: Exception) -> int:
    """0: it tells why; 1: it may; 2: it tells that somebody else has ended."""
    if is_echo(error):
        return 2
    return int(failure_of(error) is Failure.BUG)
