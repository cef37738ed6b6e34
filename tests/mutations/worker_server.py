"""Fork server for units: a program in the environment `transformers` that has already imported the slow modules.

    python -m tests.mutations.worker_server SOCKET

It reads one request per connection, a JSON object on one line, forks, and answers with the id of the child. A request
names a unit (`unit`: its folder and index), or a function (`call`, as module:function) with its `arguments`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from typing import Any

from hpcq.launch import job

MODEL_TYPES = ("llama", "gpt2", "gemma2", "gemma3", "qwen2", "qwen3", "mixtral", "qwen3_moe", "deepseek_v3")
PRELOADED_MODULES = (
    "hpcq.launch.job",
    "hpcq.evaluate.worker",
    "hpcq.evaluate.merge",
    "hpcq.evaluate.scoring",
    "hpcq.evaluate.backends.transformers.backend",
    "hpcq.evaluate.backends.transformers.prefix_scoring.engine",
    "hpcq.quantize.worker",
    "hpcq.quantize.llmcompressor",
    "llmcompressor",
    "llmcompressor.modifiers.gptq",
    "lm_eval.models.huggingface",
    "transformers.models.auto.modeling_auto",
    "transformers.generation",
    "tests.families",
    "tests.lm_eval_reference",
    *(f"transformers.models.{name}.modeling_{name}" for name in MODEL_TYPES),
)
PARENT_CHECK_S = 5.0
"""Seconds between checks that the client, this process's parent, exists."""


def main() -> None:
    """Serve until the client exits."""
    for name in PRELOADED_MODULES:
        importlib.import_module(name)
    # Hundreds of regular expressions that every process compiles at its first load (transformers 5.17): a second.
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for: the client watches their ids
    gc.collect()
    gc.freeze()
    server = socket.socket(socket.AF_UNIX)
    server.bind(sys.argv[1])
    server.listen()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    server.settimeout(PARENT_CHECK_S)
    client = os.getppid()
    while os.getppid() == client:
        try:
            connection, _ = server.accept()
        except TimeoutError:
            continue
        connection.setblocking(True)  # noqa: FBT003 (it takes no keyword)
        with connection, connection.makefile("rw", encoding="utf-8") as stream:
            line = stream.readline()
            if not line.strip():
                return
            pid = os.fork()
            if pid == 0:
                server.close()
                connection.close()
                _run_and_exit(json.loads(line))
            stream.write(f"{pid}\n")


def _run_and_exit(request: dict[str, Any]) -> None:
    """Run the request in this child, with its output in the request's log, and exit."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.chdir(request["folder"])
        os.environ.update(request["environment"])
        if "unit" in request:
            job.main(request["unit"])
        else:
            module, _, function = request["call"].partition(":")
            getattr(importlib.import_module(module), function)(**request["arguments"])
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:  # noqa: BLE001 (the child ends here)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
