"""Compare more than 60 tasks with lm-eval: `make test-tasks`, in the environment core."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from hpcq.core import environments
from tests.hub_server import running_hub
from tests.lm_eval_tasks.cases import FAST, FURTHER, UNMODIFIED
from tests.lm_eval_tasks.comparison import Comparison
from tests.lm_eval_tasks.runner import Runner, write_hub, write_own_tasks


def main() -> int:
    """Print the differences and their number, and return 1 if there are any."""
    core, transformers = (environments.interpreter(name) for name in ("core", "transformers"))
    total, begin = Comparison(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_hub(folder / "hub", transformers)
        own = write_own_tasks(folder / "mine")
        names = tuple(dict.fromkeys((*FAST, *FURTHER, *UNMODIFIED)))
        names = tuple(name for name in names if name != "mmlu_anatomy")  # mmlu contains it
        with running_hub(folder / "hub") as hub:
            for label, tasks, mirrored, include in (
                ("hub and mirror", names, UNMODIFIED, None),
                ("own definitions", ("my_group",), (), own),
            ):
                (folder / label).mkdir()
                runner = Runner(hub=hub, folder=folder / label, core=core, transformers=transformers)
                found = runner.compare_twice(tasks, mirrored, own=include)
                sys.stdout.write(f"{label}: {found}\n")
                sys.stdout.flush()
                total.add(found)
    sys.stdout.write("".join(f"{line}\n" for line in total.differences))
    sys.stdout.write(f"In total {total}, in {time.monotonic() - begin:.0f} s\n")
    return 1 if total.differences else 0


if __name__ == "__main__":
    sys.exit(main())
