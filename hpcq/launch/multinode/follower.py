"""What the other nodes of a unit do: come, start what node 0 says, tell it why they end, and end when it does.

Knows the line to node 0. Records nothing: the attempt is node 0's.
"""

from __future__ import annotations

import importlib
import time
import traceback
from pathlib import Path
from threading import Thread

from hpcq.core.errors import UserInputError
from hpcq.core.failures import exit_code_of, failure_of
from hpcq.core.node_rank import Place
from hpcq.core.work import EvaluateWork, Work
from hpcq.launch.multinode.channel import Line
from hpcq.launch.multinode.rendezvous import Seat, address_of, reach_head
from hpcq.launch.output import leave, output_to, sentence

LAST_WORDS_S = 10.0
"""Time for node 0 to write down why, and to dismiss this node."""


def follow(seat: Seat, work: Work, logs: Path, unit: str) -> None:
    """Do this node's part of the unit. Does not return where it has one: the process ends with node 0's.

    Raises:
        ProcessEnded: node 0 cannot be reached.
    """
    line, welcome = reach_head(seat)
    log = logs / f"{unit}.{welcome['attempt']}-{seat.node.replace('.', '-')}.log"
    with output_to(log), _LastWords(line):
        told = line.hear()
        if told is None or "start" not in told:
            return
        Thread(target=_end_with_head, args=(line,), daemon=True).start()
        if not isinstance(work, EvaluateWork):
            raise UserInputError(f"{unit}: {work.kind} is done on one node.")
        join = importlib.import_module("hpcq.evaluate.worker").join
        place = Place(nodes=len(seat.nodes), rank=seat.rank, address=address_of(seat.node), **told["start"])
        join(work, place, told["batch_share"])


def _end_with_head(line: Line) -> None:
    """Whatever node 0 says now, or that it is gone, is the end; the main thread may wait for what never comes."""
    line.hear()
    leave(0)


class _LastWords:
    """Tells node 0 what ended the block, and leaves time to have it written down."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception):
            traceback.print_exception(error)
            failure = failure_of(error)
            self._line.send(reason=sentence(error), failure=str(failure))
            time.sleep(LAST_WORDS_S)
            leave(exit_code_of(failure))
