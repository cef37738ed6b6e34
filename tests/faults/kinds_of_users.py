"""Faults that people make: commands that are killed, typed twice at once, or run past hpcq.

Knows hpcq's command line, and what lies in a submission's folder. Knows nothing of what hpcq does about it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time

from hpcq.launch.job_script import script
from tests.faults.scene import LIVE, REFUSED, USER_INPUT, Scene

_RUN_PICKLE = "import sys; from submitit.core.utils import DelayedSubmission as D; D.load(sys.argv[1]).function()"
_LONGEST_COMMAND_S = 2.5
_CANCEL_TIMEOUT_S = 20.0
_POLL_INTERVAL_S = 0.3


def start(scene: Scene, *words: str) -> subprocess.Popen[bytes]:
    """Type a command of hpcq's and do not wait for it."""
    return subprocess.Popen(
        [str(scene.hpcq.python), "-m", "hpcq", *words],
        cwd=scene.hpcq.folder,
        env=scene.cluster.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def kill_command(scene: Scene, *words: str) -> None:
    """Type a command and kill it at any instant of its life."""
    command = start(scene, *words)
    time.sleep(scene.random.uniform(0.1, _LONGEST_COMMAND_S))
    command.kill()
    printed, _ = command.communicate()
    code = command.returncode
    scene.look(words, code, printed.decode(errors="replace"), (-signal.SIGKILL, 0, 1, REFUSED))


def kill_a_command(scene: Scene) -> str | None:
    """`hpcq resume`, `merge` or `status` is typed and killed at any instant."""
    verb = scene.random.choice(("resume", "merge", "status"))
    kill_command(scene, verb, scene.layout.name)
    return f"hpcq {verb}"


def resume_twice(scene: Scene) -> str | None:
    """`hpcq resume` is typed twice at once, while the run goes on."""
    words = ("resume", scene.layout.name)
    for command in [start(scene, *words) for _ in range(2)]:
        printed, _ = command.communicate()
        scene.look(words, command.returncode, printed.decode(errors="replace"), (0, 1, REFUSED))
    return "hpcq resume"


def double(scene: Scene) -> str | None:
    """What a running job runs is run a second time beside it, by hand, past Slurm and hpcq."""
    job = scene.pick(merges=False)
    if job is None:
        return None
    pickles = sorted(job.folder.glob(f"{job.element}*_submitted.pkl"))
    if not pickles:
        return None
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SUBMITIT_"))}
    words = (script("enter.sh"), job.folder / "environment.sh", scene.hpcq.python, "-c", _RUN_PICKLE, pickles[0])
    with (scene.hpcq.folder / "by-hand.log").open("ab") as log:
        scene.by_hand.append(
            subprocess.Popen(
                ["bash", *map(str, words)],
                cwd=scene.hpcq.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        )
    return job.element


def reshard(scene: Scene) -> str | None:
    """`hpcq cancel`, and `hpcq resume -O evaluate.shards=` with another number as soon as no job is left."""
    if not scene.jobs(*LIVE):
        return None
    scene.type("cancel", scene.layout.name)
    scene.call_user("the run was cancelled")
    deadline_s = time.monotonic() + _CANCEL_TIMEOUT_S
    while scene.jobs(*LIVE) != [] and time.monotonic() < deadline_s:
        scene.undo()
        time.sleep(_POLL_INTERVAL_S)
    shards = scene.random.randint(1, 8)
    # Refused where jobs of the old shards are still there: then the plain resume, later, goes on with them.
    scene.type("resume", scene.layout.name, "-O", f"evaluate.shards={shards}", calm=(0, 1, USER_INPUT, REFUSED))
    return f"{shards} shards"
