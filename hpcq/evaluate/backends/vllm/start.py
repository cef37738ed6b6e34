"""vLLM's engine (0.32) started: on this machine, or on this node as one of several; and how it was set up.

Knows vLLM and the place of this node. Must not know requests, nor what is asked of the engine.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from multiprocessing.connection import wait
from typing import Any

from hpcq.core.node_rank import Place
from hpcq.core.processes import identity
from hpcq.evaluate.backends.vllm.root_cause import process_ended
from hpcq.evaluate.backends.vllm.watchdog import EXTENSION, ROOT_VARIABLE

# The CPU's kernels take blocks of multiples of 32 tokens; vLLM's default of 128 would compute up to 127 shared tokens
# again. Its cache would take 92 % of the machine's memory, or refuse to start where that is not free (0.32).
_ON_CPU = {"enforce_eager": True, "block_size": 32, "kv_cache_memory_bytes": 2 * 2**30}

# That all nodes are there and reach the first one is known before an engine starts, and that one has died at once. So
# these only bound what hangs. The first holds for meeting, and for each collective operation, whose ranks may have
# compiled for minutes before; the second for operations between which each rank loads its weights.
_COLLECTIVE_S = 600
_LONGEST_LOAD_S = 6 * 3600


def has_gpu() -> bool:
    """Whether this build of vLLM computes on GPUs, and there are some."""
    from vllm.platforms import current_platform

    return not current_platform.is_cpu()


def start(*, batch_share: float, place: Place | None = None, **settings: Any) -> Any:
    """vLLM's engine, with a prefix cache, and in this process where there is no GPU.

    A subprocess takes minutes to start there (85 s against 8 s), and has its threads bound to cores that a scheduler
    may have given to others.

    batch_share: how much of what is usually computed at once. place: of this node, the first, where there are others.
    settings: vLLM's `EngineArgs`.
    """
    arguments, usage = _arguments(batch_share, place, settings)

    from vllm.v1.engine.llm_engine import LLMEngine

    return LLMEngine.from_engine_args(arguments, usage_context=usage)


def join(*, batch_share: float, place: Place | None, **settings: Any) -> None:
    """The processes that the engine on node 0 has on this node, until one of them ends. Arguments are `start`'s.

    Raises:
        ProcessEnded: one has.
    """
    arguments, usage = _arguments(batch_share, place, settings)

    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    executor = MultiprocExecutor(arguments.create_engine_config(usage, headless=True), monitor_workers=False)
    processes = {worker.proc.sentinel: worker.proc for worker in executor.workers}
    ended = processes[wait(list(processes))[0]]
    ended.join()
    raise process_ended(ended.name, ended.exitcode)


def _arguments(batch_share: float, place: Place | None, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """vLLM's `EngineArgs`, and what it is used for; the environment is set."""
    # To ask for GPUs may leave a process in a state that must not be forked.
    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(_LONGEST_LOAD_S),
    }
    os.environ[ROOT_VARIABLE] = identity(os.getpid()) or ""
    usual: dict[str, Any] = {}
    on_gpu = has_gpu()
    if not on_gpu:
        defaults |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        usual |= _ON_CPU
    if place is not None:
        usual |= _among(place)
    if place is not None or _processes(settings) > 1:
        usual |= {"distributed_executor_backend": "mp", "worker_extension_cls": EXTENSION}
    elif not on_gpu:
        usual["distributed_executor_backend"] = "uni"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)

    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    settings = {**usual, **settings}
    if batch_share < 1:
        settings |= _smaller(EngineArgs, UsageContext.LLM_CLASS, batch_share, settings)
    # Statistics are kept because they tell which requests were preempted.
    return EngineArgs(enable_prefix_caching=True, disable_log_stats=False, **settings), UsageContext.LLM_CLASS


def _processes(settings: Mapping[str, Any]) -> int:
    return int(settings.get("tensor_parallel_size", 1) * settings.get("pipeline_parallel_size", 1))


def _among(place: Place) -> dict[str, Any]:
    """vLLM's arguments for one of several nodes; the environment tells its libraries which address is meant."""
    os.environ["VLLM_HOST_IP"] = place.address
    interface = place.interface
    if interface:
        # gloo would take what the host's name resolves to, on many nodes a loopback.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    return {
        "nnodes": place.nodes,
        "node_rank": place.rank,
        "master_addr": place.head,
        "master_port": place.port,
        "distributed_timeout_seconds": _COLLECTIVE_S,
        "cpu_distributed_timeout_seconds": _LONGEST_LOAD_S,
    }


def _smaller(arguments: Any, usage: Any, share: float, settings: Mapping[str, Any]) -> dict[str, int]:
    """A share of the prompts and of the tokens that are computed at once: a prompt and a block of tokens at least."""
    defaults = arguments.get_batch_defaults(_processes(settings))
    names = ("max_num_batched_tokens", "max_num_seqs")
    tokens, rows = (int(settings.get(name, usual[usage]) * share) for name, usual in zip(names, defaults, strict=True))
    tokens = max(tokens, settings.get("block_size", 1))
    return {"max_num_seqs": max(1, min(rows, tokens)), "max_num_batched_tokens": tokens}


def describe(engine: Any) -> dict[str, str | int | float]:
    """The device, and how the engine was set up."""
    import torch
    from vllm.platforms import current_platform

    config, on_gpu = engine.vllm_config, has_gpu()
    return {
        # Not asked of torch, which would take memory of the GPU for it.
        "device": current_platform.get_device_name() if on_gpu else f"{platform.machine()} CPU",
        "cuda": str(torch.version.cuda or ""),
        "threads": torch.get_num_threads(),
        "loaded_dtype": str(config.model_config.dtype).removeprefix("torch."),
        "max_length": int(config.model_config.max_model_len),
        "model_runner": 2 if config.use_v2_model_runner else 1,
        "block_size": int(config.cache_config.block_size),
        "kv_cache_tokens": int(config.cache_config.num_gpu_blocks or 0) * int(config.cache_config.block_size),
        "max_num_seqs": int(config.scheduler_config.max_num_seqs),
        "max_num_batched_tokens": int(config.scheduler_config.max_num_batched_tokens),
        "tensor_parallel": int(config.parallel_config.tensor_parallel_size),
        "pipeline_parallel": int(config.parallel_config.pipeline_parallel_size),
        "nodes": int(config.parallel_config.nnodes),
    }
