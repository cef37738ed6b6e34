"""What vLLM's build for CPUs (0.32) needs to span nodes as it does with GPUs, as a plugin of vLLM's; for tests alone.

Its model runner makes the place for what another stage hands over in a warm-up that it leaves out on CPUs. Which ranks
are on one node it reckons from the number of devices, and takes a CPU for one: HPCQ_TEST_DEVICES says how many there
are. Where there is the file that HPCQ_TEST_TROUBLE names, the next pass ends the worker on the second node by what it
says, SIGKILL or want of memory, and the file becomes one that ends with .done.
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
    """Make `folder` one that has the plugin for every interpreter whose PYTHONPATH it is in."""
    (folder / f"{NAME}-1.dist-info").mkdir(parents=True)
    (folder / f"{NAME}.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (folder / f"{NAME}-1.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1\n")
    points = f"[vllm.general_plugins]\n{NAME} = {NAME}:mend\n"
    (folder / f"{NAME}-1.dist-info" / "entry_points.txt").write_text(points)
    return folder


def mend() -> None:
    """Called by vLLM in each of its processes, and once more for a model that it does not know."""
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
            _suffer(trouble)
        return execute(self, *arguments, **settings)

    CPUModelRunner.load_model, CPUModelRunner.execute_model = load_model, execute_model


def _suffer(trouble: Path) -> None:
    kind = trouble.read_text()
    trouble.rename(trouble.with_suffix(".done")).touch()
    if kind == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Rehearsed.")
