"""Code that a model wrote runs in a sandbox: what passes, what does not, and what it cannot do."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpcq.evaluate.code_execution.code_eval import CodeEval, sandboxed_code_eval
from hpcq.evaluate.code_execution.sandbox import Isolation, Limits, isolation, run_program
from hpcq.evaluate.pass_at_k import pass_at_k

FAILING = {
    "an assertion": "assert 1 + 1 == 3",
    "a syntax error": "def (",
    "an exit before the tests": "import sys; sys.exit(0)",
    "an exit without clean-up": "import os; os._exit(0)",
    "input": "input()",
    "a fork": "import os\nwhile True: os.fork()",
    "a process": "import subprocess; subprocess.run(['true'], check=True)",
    "a large file": "open('file', 'wb').write(bytes(64 * 2**20))",
    "much memory": "bytearray(8 * 2**30)",
    "many files": "files = [open('/dev/null') for _ in range(1000)]",
}
PASSING = {
    "an assertion": "assert 1 + 1 == 2",
    "output": "print('x' * 10**6)",
    "files in its folder": "open('file', 'w').write('x'); assert open('file').read() == 'x'",
    "a temporary file": "import tempfile; tempfile.NamedTemporaryFile().write(b'x')",
    "a thread that does not end": "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()",
    "half of a surrogate pair": "x = '\\ud800'",
}


@pytest.mark.parametrize("program", FAILING.values(), ids=FAILING)
def test_programs_that_do_not_pass(program: str) -> None:
    """Also those that end with exit status 0 before their tests."""
    assert not run_program(program).passed


@pytest.mark.parametrize("program", PASSING.values(), ids=PASSING)
def test_programs_that_pass(program: str) -> None:
    """What correct answers to benchmarks do."""
    assert run_program(program).passed


@pytest.mark.parametrize(
    ("program", "limits"),
    [
        ("import time; time.sleep(1.5)", Limits(elapsed_seconds=1)),
        ("while True: pass", Limits(elapsed_seconds=1)),
        ("import threading; threading.Event().wait()", Limits(elapsed_seconds=1)),
        ("10 ** 10 ** 8", Limits(cpu_seconds=1)),
        ("import signal, time; signal.alarm(0); time.sleep(600)", Limits(wall_seconds=1.0)),
    ],
    ids=["sleep", "endless loop", "endless wait", "code that blocks signals", "code without the alarm"],
)
def test_programs_that_do_not_end(program: str, limits: Limits) -> None:
    """They are ended by a limit; a program that sleeps for too long did pass."""
    result = run_program(program, limits)
    assert (result.passed, result.reason) == (False, "ended by a limit")


def test_a_program_that_sleeps_fails_as_in_code_eval() -> None:
    """3 s of sleep are too long, a short sleep is not; time in which other processes have the processor is none."""
    assert not run_program("import time; time.sleep(4)").passed
    assert run_program("import time; time.sleep(0.5)").passed
    contended = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}}); sum(range(25_000_000))"
    with ThreadPoolExecutor(max_workers=4) as pool:  # on one processor, together they need more than the limit
        passed = pool.map(lambda _: run_program(contended, Limits(elapsed_seconds=1.5)).passed, range(4))
        assert all(passed)


def test_code_reaches_nothing_outside(tmp_path: Path) -> None:
    """Neither files, nor the network, nor other processes."""
    if isolation() is Isolation.LIMITS:
        pytest.skip("This kernel permits no namespaces: code is limited, but not isolated.")
    victim = tmp_path / "file"
    victim.write_text("unchanged")
    for program in (
        f"open({str(victim)!r}, 'w')",
        f"import os; os.remove({str(victim)!r})",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        "import socket; socket.create_connection(('127.0.0.1', 22), 5)",
        "import os; assert len([name for name in os.listdir('/proc') if name.isdigit()]) > 3",
    ):
        assert not run_program(program).passed, program
    assert victim.read_text() == "unchanged"


def test_the_metric_counts_what_passes() -> None:
    """Of two problems with two programs each, three programs pass."""
    right, wrong = "def f(x): return x + 1", "def f(x): return x"
    scores, results = CodeEval().compute(
        references=["assert f(1) == 2", "assert f(2) == 3"], predictions=[[right, wrong], [right, right]], k=[1, 2, 3]
    )
    assert scores == {"pass@1": 0.75, "pass@2": 1.0}
    assert [[row["passed"] for _, row in results[number]] for number in (0, 1)] == [[True, False], [True, True]]


@pytest.mark.parametrize(("programs", "passed", "k"), [(5, 2, 1), (5, 2, 3), (5, 0, 2), (5, 5, 5), (6, 5, 2)])
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(programs: int, passed: int, k: int) -> None:
    """Counted over all subsets."""
    subsets = list(itertools.combinations(range(programs), k))
    share = sum(any(number < passed for number in subset) for subset in subsets) / len(subsets)
    assert pass_at_k(programs, passed, k) == pytest.approx(share, abs=1e-15)


def test_lm_evals_definitions_load_this_metric() -> None:
    """They call `evaluate.load("code_eval")`, which would need the hub."""
    import evaluate

    with sandboxed_code_eval():
        assert isinstance(evaluate.load("code_eval"), CodeEval)
