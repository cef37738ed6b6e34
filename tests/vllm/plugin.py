"""vLLM plugin, for tests only: lets vLLM's CPU build (0.32) run on several nodes as its GPU build does.

The model runner allocates the tensors that it receives from the previous pipeline stage in a warm-up that is skipped on
CPUs. vLLM derives which ranks share a node from the number of devices, which is one on CPUs; HPCQ_TEST_DEVICES
overrides it. If the file named by HPCQ_TEST_TROUBLE exists, the worker on the second node fails in the next forward
pass as the file says (SIGKILL or out of memory), and the file gets the suffix .done.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

NAME = "hpcq_test_plugin"
DEVICES_VARIABLE = "HPCQ_TEST_DEVICES"
TROUBLE_VARIABLE = "HPCQ_TEST_TROUBLE"
KILLED, OUT_OF_MEMORY = "killed", "out of memory"


def install(folder: Path) -> Path:
    """Install the plugin in `folder`, for every interpreter with `folder` in its PYTHONPATH."""
    (folder / f"{NAME}-1.dist-info").mkdir(parents=True)
    (folder / f"{NAME}.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (folder / f"{NAME}-1.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1\n")
    points = f"[vllm.general_plugins]\n{NAME} = {NAME}:patch\n"
    (folder / f"{NAME}-1.dist-info" / "entry_points.txt").write_text(points)
    return folder


def patch() -> None:
    """Patch vLLM. vLLM calls it in each of its processes, and once more for a model that it does not know."""
    if multiprocessing.parent_process() is None:
        return
    from vllm.distributed import get_pp_group
    from vllm.platforms import current_platform
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    type(current_platform).device_count = classmethod(lambda _: int(os.environ[DEVICES_VARIABLE]))
    load, execute = CPUModelRunner.load_model, CPUModelRunner.execute_model
    if load.__module__ == __name__:
        return

    def load_model(self: Any, *arguments: Any, **settings: Any) -> None:
        load(self, *arguments, **settings)
        if not get_pp_group().is_first_rank:
            self.intermediate_tensors = self.model.make_empty_intermediate_tensors(
                batch_size=self.max_num_tokens, dtype=self.model_config.dtype, device=self.device
            )

    def execute_model(self: Any, *arguments: Any, **settings: Any) -> Any:
        trouble = Path(os.environ.get(TROUBLE_VARIABLE, ""))
        if os.environ["SLURM_PROCID"] == "1" and trouble.is_file():
            _fail(trouble)
        return execute(self, *arguments, **settings)

    CPUModelRunner.load_model, CPUModelRunner.execute_model = load_model, execute_model


def _fail(trouble: Path) -> None:
    kind = trouble.read_text()
    trouble.rename(trouble.with_suffix(".done")).touch()
    if kind == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Simulated.")
