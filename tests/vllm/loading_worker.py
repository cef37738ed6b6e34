"""vLLM worker for tests only, which never finishes to load its model; and a program that starts an engine of them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from vllm.v1.worker.cpu_worker import CPUWorker

from hpcq.evaluate.backends.vllm.engine import start_engine

FOLDER_VARIABLE = "HPCQ_TEST_LOADING"


class LoadingWorker(CPUWorker):
    """Creates a file with its process id as name, and loads until it is killed."""

    def init_device(self) -> None:
        """Do not wait for the other workers."""

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        """Load forever."""
        assert not load_dummy_weights
        (Path(os.environ[FOLDER_VARIABLE]) / str(os.getpid())).touch()
        while True:
            time.sleep(60)


if __name__ == "__main__":
    start_engine(
        batch_share=1.0,
        model=sys.argv[1],
        tensor_parallel_size=2,
        worker_cls="tests.vllm.loading_worker.LoadingWorker",
        max_model_len=64,
    )
