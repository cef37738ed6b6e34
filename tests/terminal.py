"""Run a command on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

_END = b"\0end of the output"
_ROWS = 24


def run_on_terminal(
    command: Sequence[str | Path],
    streams: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    columns: int = 80,
    answers: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run a command and return its exit code and what it printed on the terminal.

    The terminal stays open until all output was read, because the kernel may drop what is unread when the last process
    closes it.

    Args:
        command: The command.
        streams: Which of stdin, stdout and stderr are the terminal. The others are /dev/null.
        cwd: Working directory.
        env: Environment.
        columns: Width of the terminal.
        answers: Line to type after each question, once.
    """
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, columns, 0, 0))
    output = bytearray()
    reader = threading.Thread(target=_read, args=(controller, output, dict(answers or {})))
    reader.start()
    connected = {
        stream: terminal if stream in streams else subprocess.DEVNULL for stream in ("stdin", "stdout", "stderr")
    }
    try:
        code = subprocess.run(command, cwd=cwd, env=env, check=False, **connected).returncode
    finally:
        os.write(terminal, _END)
        reader.join()
        os.close(terminal)
        os.close(controller)
    return code, output.removesuffix(_END).decode()


def _read(controller: int, output: bytearray, answers: dict[str, str]) -> None:
    while not output.endswith(_END):
        output += os.read(controller, 1 << 16)
        for question in [question for question in answers if question.encode() in output]:
            os.write(controller, answers.pop(question).encode() + b"\n")
