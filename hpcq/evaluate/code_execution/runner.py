"""Program of the sandbox: limits itself, runs a model's code, and reports that it reached the end.

It is started as `python -I runner.py` with a JSON document on standard input (`hpcq.evaluate.code_execution.sandbox`),
and imports nothing of hpcq.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time

_MOUNT_SETATTR = 442
"""Number of the system call on all architectures (Linux 5.12)."""
_AT_FDCWD, _AT_RECURSIVE, _READ_ONLY = -100, 0x8000, 1
_WITHOUT = ("fork", "forkpty", "posix_spawn", "posix_spawnp", "system", "popen", "kill", "killpg")
"""Functions of `os` that are removed, as by code_eval, because Linux does not limit the number of root's processes."""


def main() -> None:
    """Run the program in the document; afterwards write the document's token to the original standard output."""
    document = json.load(sys.stdin)
    report = os.fdopen(os.dup(1), "w")
    if document["is_isolated"]:
        _protect_files(document["folder"])
    os.chdir(document["folder"])
    _limit(document["limits"])
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    for name in _WITHOUT:
        setattr(os, name, None)
    setattr(subprocess, "Popen", None)  # noqa: B010  # mypy rejects an assignment
    program, token = document.pop("program"), document.pop("token")
    _limit_elapsed_time(document["seconds"])
    exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})  # noqa: S102  # the purpose of this program
    report.write(token)
    report.flush()
    os._exit(0)  # threads that the program has started may still run


def _protect_files(folder: str) -> None:
    """Make all file systems of this mount namespace read-only, except for an empty one in memory at `folder`."""
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY, 0, 0, 0)
    done = libc.syscall(
        _MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, ctypes.byref(attributes), ctypes.sizeof(attributes)
    )
    done |= libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, b"size=64m")
    if done:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _limit(limits: dict[str, int]) -> None:
    """Set resource limits, by the end of their names (RLIMIT_CPU), in the units of setrlimit(2)."""
    for name, value in limits.items():
        number = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(number)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(number, (most, most + (name == "CPU")))  # the kernel kills it a second later
    signal.signal(signal.SIGXCPU, lambda *_: os._exit(signal.SIGXCPU))


def _limit_elapsed_time(seconds: float) -> None:
    """End this process after `seconds` of computing, sleeping and waiting.

    Hugging Face's code_eval limits wall-clock time in the same way, with an alarm around the execution. Here, the time
    in which the program could run but had no processor does not count, so the result does not depend on the load.
    """
    begin, waited = time.monotonic(), _time_without_processor()

    def check(*_: object) -> None:
        left = seconds - (time.monotonic() - begin) + (_time_without_processor() - waited)
        if left <= 0:
            os._exit(signal.SIGXCPU)
        signal.setitimer(signal.ITIMER_REAL, left)

    signal.signal(signal.SIGALRM, check)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _time_without_processor() -> float:
    """Return the seconds that the main thread was ready to run but had no processor; 0 if the kernel does not say."""
    try:
        with open("/proc/self/schedstat", encoding="ascii") as file:  # noqa: PTH123  # nothing to import at this point
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


if __name__ == "__main__":
    main()
